"""Create the peers' virtual environments, one each, since their requirements conflict.

python -m benchmarks.peers.install [name ...]
"""

import argparse
import re
import subprocess
import sys
import venv

from benchmarks.peers import ENVIRONMENTS, ROOT, python_of

MODEL_REQUIREMENTS = ("torch==2.13.0", "openvino", "transformers", "pillow", "numpy", "safetensors")
PEER_REQUIREMENTS = {
    "fastapi": ("fastapi", "uvicorn[standard]", "python-multipart"),
    "litserve": ("litserve==0.2.19", "python-multipart"),  # an undeclared dependency of UploadFile
    "bentoml": ("bentoml==1.4.39",),
    "ray": ("ray[serve]==2.60.0",),
    "mosec": ("mosec==0.9.8",),
}

_MODEL_PACKAGES = {"torch", "openvino", "transformers", "numpy", "pillow", "safetensors", "tokenizers", "huggingface_hub"}
_PINS_OF_ITS_OWN = {"bentoml"}
"""Environments whose peer conflicts with our pins of web packages; only the model's packages are pinned there."""


def is_installed(environment: str) -> bool:
    """Return whether the environment is complete and has the current pins."""
    complete = ENVIRONMENTS / environment / "installed"
    return complete.is_file() and complete.read_text() == _wanted(environment)


def install(environment: str) -> None:
    """Create the environment unless it is installed."""
    if is_installed(environment):
        return
    directory = ENVIRONMENTS / environment
    venv.create(directory, clear=True, with_pip=True)
    constraints = directory / "constraints.txt"
    constraints.write_text("\n".join((*_pins(environment), "")))
    command = [str(python_of(environment)), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
    subprocess.run([*command, *MODEL_REQUIREMENTS, *PEER_REQUIREMENTS[environment]], check=True)
    (directory / "installed").write_text(_wanted(environment))


def _wanted(environment: str) -> str:
    return "\n".join((*MODEL_REQUIREMENTS, *PEER_REQUIREMENTS[environment], *_pins(environment), ""))


def _pins(environment: str) -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    if environment not in _PINS_OF_ITS_OWN:
        return pins
    return [pin for pin in pins if re.split(r"[=<>!~ ]", pin, maxsplit=1)[0] in _MODEL_PACKAGES]


def main() -> None:
    """Install the environments named on the command line, or all."""
    parser = argparse.ArgumentParser(description="Create the peers' virtual environments under .bench/environments.")
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"one of {', '.join(PEER_REQUIREMENTS)}; all, if none is named"
    )
    names = parser.parse_args().names or list(PEER_REQUIREMENTS)
    if unknown := [name for name in names if name not in PEER_REQUIREMENTS]:
        parser.error(f"no such environment: {', '.join(unknown)}")
    for name in names:
        sys.stderr.write(f"{name}: {ENVIRONMENTS.relative_to(ROOT) / name}\n")
        install(name)


if __name__ == "__main__":
    main()
