"""`python -m fourm_cli`, so that `torchrun -m fourm_cli ...` works."""

from fourm_cli.app import main

main()
