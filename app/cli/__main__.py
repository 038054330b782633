"""`python -m app.cli`, for environments without the script `vit-serve`."""

from app.cli import main

main()
