"""`python -m foveal` is the command line, as `accelerate launch -m foveal` needs it."""

from foveal.cli import main

main()
