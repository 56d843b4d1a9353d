"""A training run as one flat YAML file: EpicConfig's fields and a few of the run's own; words on a command line win."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from foveal.distillation.config import EpicConfig
from foveal.errors import FovealError
from foveal.files import read_text

__all__ = ["SHORT_NAMES", "Recipe", "RunOptions", "bundled_recipes", "parse_recipe"]

SHORT_NAMES = {"out": "output_dir", "steps": "max_steps", "batch_size": "per_device_train_batch_size"}
"""What `foveal train` calls some fields of TrainingArguments."""

_FOLDER = Path(__file__).parent.parent / "recipes"
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class RunOptions:
    """What a run needs beside EpicConfig.

    Raises:
        FovealError: a value out of range.
    """

    model: str | None = field(
        default=None, metadata={"help": "a checkpoint's folder or hub name; the bundled model if left out"}
    )
    data: str = field(default="scenes", metadata={"help": "`scenes`, or a file of conversations"})
    images: str | None = field(
        default=None, metadata={"help": "folder that image names start from; the data file's if left out"}
    )
    eval_data: str | None = field(
        default=None, metadata={"help": "conversations to evaluate the loss on (see eval_strategy)"}
    )
    dtype: str = field(
        default="float32",
        metadata={"help": "of the weights while they learn; bf16=true computes in bfloat16 all the same"},
    )
    global_batch: int | None = field(
        default=None,
        metadata={"help": "conversations per optimizer step; gradient_accumulation_steps follows from it"},
    )
    processes: int | None = field(
        default=None,
        metadata={"help": "number of GPUs that a dry run reckons with; those at hand if left out"},
    )
    conversations: int | None = field(
        default=None, metadata={"help": "how many a dry run reckons with if the data are not at hand"}
    )
    visual_tokens: int | None = field(
        default=None, metadata={"help": "per image in a dry run; what the model's config says if left out"}
    )
    text_tokens: int = field(
        default=256,
        metadata={"help": "per conversation, half of them answers, in the time that a dry run estimates"},
    )

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise FovealError(f"unknown dtype {self.dtype!r}: choose one of {', '.join(_DTYPES)}")
        for name in (
            "global_batch",
            "processes",
            "conversations",
            "visual_tokens",
            "text_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise FovealError(f"{name}={value} must be at least 1")

    def accumulation(self, batch_size: int, processes: int) -> int | None:
        """Micro-batches of `batch_size` per optimizer step and process that make up `global_batch`, if it is given.

        Raises:
            FovealError: they do not.
        """
        if self.global_batch is None:
            return None
        steps, rest = divmod(self.global_batch, batch_size * processes)
        if rest or not steps:
            raise FovealError(
                f"global_batch={self.global_batch} cannot be made of batches of {batch_size} on {processes} processes: "
                "change per_device_train_batch_size or global_batch"
            )
        return steps


@dataclass(frozen=True)
class Recipe:
    """What is to be done.

    Attributes:
        run: the run's own options.
        config: the trainer's.
        given: every option that the recipe or the command line named, by name.
        source: the recipe's file; None without one.
    """

    run: RunOptions
    config: EpicConfig
    given: dict[str, Any]
    source: Path | None = None

    def text(self) -> str:
        """The recipe as YAML, the command line's words included."""
        return str(yaml.safe_dump(self.given, sort_keys=False, allow_unicode=True))


def bundled_recipes() -> dict[str, str]:
    """The recipes that come with Foveal: name -> what it is, from the file's first line."""
    return {
        path.stem: path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        for path in sorted(_FOLDER.glob("*.yaml"))
    }


def parse_recipe(words: Sequence[str], defaults: Mapping[str, Any] | None = None) -> Recipe:
    """Read `[RECIPE] [--option value]...`.

    Args:
        words: RECIPE is a YAML file or a bundled recipe's name; options (`--learning_rate` or `--learning-rate`) go
            before what it says.
        defaults: go behind both, in place of the fields' own defaults.

    Raises:
        FovealError: an unknown recipe, an unknown option (with the nearest name), or a value of the wrong type or out
            of range.
    """
    parser = _Parser()
    name, said = parser.read(words)
    source = None if name is None else _find(name)
    given = {} if source is None else parser.read(_words(source), prefix=f"{source.name}: ")[1]
    given |= said
    options = {**(defaults or {}), **given}
    if given.get("load_best_model_at_end") and not {"save_steps", "save_strategy"} & given.keys():
        # The best can only be kept if it was saved.
        options |= {
            f"save_{name}": given[f"eval_{name}"] for name in ("strategy", "steps") if f"eval_{name}" in given
        }
    own = {item.name for item in fields(RunOptions)}
    run = RunOptions(**{name: value for name, value in options.items() if name in own})
    return Recipe(run, _config({n: v for n, v in options.items() if n not in own}, run), given, source)


def _config(options: dict[str, Any], run: RunOptions) -> EpicConfig:
    try:
        config = EpicConfig(**options)
    except FovealError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise FovealError(f"the options do not go together: {error}") from error
    if run.dtype == "float16" and config.bf16:
        raise FovealError("dtype float16 and bf16 do not go together: pass --bf16 false, or --dtype bfloat16")
    steps = run.accumulation(config.per_device_train_batch_size, config.world_size)
    if steps is not None:
        config.gradient_accumulation_steps = steps
    return config


class _Parser(HfArgumentParser):
    """Every field as an option; errors in one line, and nothing for options that are not there."""

    def __init__(self) -> None:
        kinds: Any = [RunOptions, EpicConfig]
        super().__init__(kinds, add_help=False, allow_abbrev=False)
        self.register("type", float, _number)
        self.add_argument("recipe", nargs="?")
        self.names = [item.name for kind in kinds for item in fields(kind) if item.init]
        self._prefix = ""

    def read(self, words: Sequence[str], prefix: str = "") -> tuple[str | None, dict[str, Any]]:
        """The recipe's name, and the options that the words name."""
        self._prefix = prefix
        missing = object()
        blank = Namespace(**dict.fromkeys(self.names, missing))
        found, rest = self.parse_known_args(list(words), namespace=blank)
        if rest:
            self.error(self._unknown(rest[0]))
        options = {name: value for name, value in vars(found).items() if value is not missing}
        if str(options.get("recipe") or "").startswith(
            "-"
        ):  # argparse takes `--name=two words` for no option
            self.error(self._unknown(options["recipe"]))
        return options.pop("recipe"), options

    def _unknown(self, word: str) -> str:
        name = word.partition("=")[0]
        if not name.startswith("-"):
            return f"{word!r} follows no option; a recipe comes first, then --option value"
        if (field_name := SHORT_NAMES.get(name.strip("-").replace("-", "_"))) is not None:
            return f"there is no option {name} here: write --{field_name}"
        near = get_close_matches(name.strip("-").replace("-", "_"), self.names, n=1)
        hint = f"did you mean --{near[0]}?" if near else "see `foveal train --help` and EpicConfig's fields"
        return f"there is no option {name}: {hint}"

    def error(self, message: str) -> NoReturn:
        raise FovealError(self._prefix + message.removeprefix("argument "))


def _number(text: str) -> float:
    """A float, or a fraction such as 1/9."""
    return float(Fraction(text)) if "/" in text else float(text)


def _find(name: str) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    if name in bundled_recipes():
        return _FOLDER / f"{name}.yaml"
    raise FovealError(
        f"no recipe {name!r}: name a YAML file, or one of {', '.join(bundled_recipes())} (see `foveal train --list`)"
    )


def _words(path: Path) -> list[str]:
    """A YAML file as words of a command line."""
    try:
        options = yaml.safe_load(read_text(path)) or {}
    except yaml.YAMLError as error:
        raise FovealError(f"{path}: no YAML ({error})") from error
    if not isinstance(options, dict):
        raise FovealError(f"{path}: a recipe is a flat list of `option: value` lines")
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        elif value is not None:
            words.append(f"--{name}={_word(value)}")
    return words


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | bool) else str(value)
