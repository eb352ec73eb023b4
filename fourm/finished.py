"""Which results are there already and whole, so that a run that goes on need not make them again."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fourm.checksums import Listed
from fourm.conditions import Work
from fourm.errors import SampleError
from fourm.formats import find_flaw
from fourm.layout import outputs_of
from fourm.opening import read_bytes
from fourm.outputs import Output
from fourm.processes import read_checksums
from fourm.request import Request

READ_BYTES = 1 << 16  # a file of up to so many is compared with its checksum, a larger one with its size


@dataclass(frozen=True, slots=True)
class Folder:
    """What lies in an output folder, as far as this process needs it."""

    request: Request
    outputs: Sequence[Output]
    listed: Mapping[str, Listed] = field(default_factory=dict)  # by path below the folder

    @staticmethod
    def of(request: Request, outputs: Sequence[Output]) -> "Folder":
        """Read the lists of checksums; where all is made anew, nothing is there."""
        share = (request.world.rank, request.world.size)
        listed = {} if request.overwrite or not request.out.is_dir() else read_checksums(request.out, share)
        return Folder(request, outputs, listed)

    def paths(self, work: Work) -> tuple[Path, ...]:
        """All files that a sample and variation gets."""
        variation = work.variation if self.request.num_variations > 1 else None
        places = [output.place for output in self.outputs if output.is_written]
        return outputs_of(self.request.out, work.sample.key, places, variation)

    def is_made(self, work: Work) -> bool:
        """True when every file of a sample and variation is there and whole."""
        return not self.request.overwrite and all(map(self.is_whole, self.paths(work)))

    def is_listed(self, path: Path) -> bool:
        """Whether a list of checksums has the file."""
        return self._name(path) in self.listed

    def is_whole(self, path: Path) -> bool:
        """Whether a file is as it was written: as its checksum says, or else its format.

        Of a large file only the size is compared. An empty file without a checksum is none: a power cut
        leaves such.
        """
        try:
            size = path.stat().st_size
            said = self.listed.get(self._name(path))
            if said is None:
                return size > 0 and find_flaw(path) is None
            if said.size is not None and (size != said.size or size > READ_BYTES):
                return size == said.size
            return hashlib.sha256(read_bytes(path, max(size, 1))).hexdigest() == said.sha256
        except (OSError, SampleError):
            return False

    def _name(self, path: Path) -> str:
        return path.relative_to(self.request.out).as_posix()
