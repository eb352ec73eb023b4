"""Which results of a run are already complete, so that `--resume` does not make them again."""

import hashlib
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fourm.codecs.files import is_written_row
from fourm.data.layout import outputs_of
from fourm.data.opening import read_bytes
from fourm.errors import SampleError
from fourm.output.checksums import Listed
from fourm.output.formats import find_flaw
from fourm.output.processes import read_checksums
from fourm.runs.conditions import Work
from fourm.runs.outputs import Output
from fourm.runs.request import Request

READ_BYTES = 1 << 16  # larger files are compared by size only, others by checksum


@dataclass(frozen=True, slots=True)
class Folder:
    """The output folder of a run: which of the files of this process's samples are complete."""

    request: Request
    outputs: Sequence[Output]
    listed: Mapping[str, Listed] = field(default_factory=dict)  # by path below the folder

    @staticmethod
    def of(request: Request, outputs: Sequence[Output]) -> "Folder":
        """Read the lists of checksums; with `overwrite` all files count as missing, so none is read."""
        share = (request.world.rank, request.world.size)
        listed = {} if request.overwrite or not request.out.is_dir() else read_checksums(request.out, share)
        return Folder(request, outputs, listed)

    def paths(self, work: Work) -> tuple[Path, ...]:
        """All files of a sample and variation."""
        variation = work.variation if self.request.num_variations > 1 else None
        places = [output.place for output in self.outputs if output.is_written]
        return outputs_of(self.request.out, work.sample.key, places, variation)

    def is_made(self, work: Work) -> bool:
        """True if every file of a sample and variation exists and is complete."""
        return not self.request.overwrite and all(map(self.is_whole, self.paths(work)))

    def is_listed(self, path: Path) -> bool:
        """True if a list of checksums contains the file."""
        return self._name(path) in self.listed

    def is_whole(self, path: Path) -> bool:
        """True if a file matches its checksum, or if it has none, is a complete file of its format.

        Tokens without a checksum must also be as many as their modality has, and of its vocabulary. Only the
        size of a large file is compared. An empty file without a checksum is not complete: a power failure
        can leave one. Neither is a link: what it leads to does not belong to the folder.
        """
        try:
            told = path.lstat()
            if not stat.S_ISREG(told.st_mode):
                return False
            size = told.st_size
            said = self.listed.get(self._name(path))
            if said is None:
                return size > 0 and find_flaw(path) is None and self._fits_its_row(path)
            if said.size is not None and (size != said.size or size > READ_BYTES):
                return size == said.size
            return hashlib.sha256(read_bytes(path, max(size, 1))).hexdigest() == said.sha256
        except (OSError, SampleError):
            return False

    def _fits_its_row(self, path: Path) -> bool:
        """True unless the file is one of tokens, and others than this run would write."""
        for output in self.outputs:
            if output.form == "ids" and path.is_relative_to(self.request.out / output.place.folder):
                return is_written_row(path, output.modality.max_tokens, output.modality.vocab_size)
        return True

    def _name(self, path: Path) -> str:
        return path.relative_to(self.request.out).as_posix()
