"""python -m tests.support.converting FD: the process that converts, beside a torchvision without its compiled part."""

import sys

from app.converting.process_main import main
from tests.support.torchvision_operators import declare_missing_operators

if __name__ == "__main__":
    declare_missing_operators()
    main(int(sys.argv[1]))
