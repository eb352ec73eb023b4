"""Pictures of the README, made by its own commands: `python -m demo.showcase [--images docs/images]`."""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROMPT = "a small red circle above a blue square"
EVERYTHING = "tok_clip-tok_depth-tok_normal-tok_semseg-tok_canny_edge-tok_rgb"


def fourm(*words: object) -> None:
    """One command, as a user types it."""
    subprocess.run([sys.executable, "-m", "fourm_cli", *map(str, words)], check=True, stdout=sys.stderr)


def make(work: Path, images: Path) -> None:
    """Run the commands in a folder and copy what the README shows."""
    fourm("generate", "--sr-targets", "tok_clip-tok_rgb", "--out", work / "twelve", "-q")
    fourm("plot", work / "twelve", "--no-films", "-q")
    fourm("generate", PROMPT, "--targets", EVERYTHING, "--num-variations", 2, "--sr-targets", "tok_rgb",
          "--out", work / "sheet", "-q")  # fmt: skip
    fourm("plot", work / "sheet", "-q")
    fourm("generate", PROMPT, "--preview", 4, "--out", work / "film", "-q")
    fourm("plot", work / "film", "-q")
    fourm("schedule", "show", "--temps", "3.0-0.5", "--plot", work / "schedule.png")
    images.mkdir(parents=True, exist_ok=True)
    for source, name in (
        ("twelve/plots/contact.png", "contact"),
        ("sheet/plots/000000.png", "sheet"),
        ("film/plots/000000-film.png", "film"),
        ("schedule.png", "schedule"),
    ):
        shutil.copyfile(work / source, images / f"{name}.png")


def main() -> None:
    """Make all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=Path("docs/images"), help="folder for the pictures")
    with tempfile.TemporaryDirectory() as work:
        make(Path(work), parser.parse_args().images)


if __name__ == "__main__":
    main()
