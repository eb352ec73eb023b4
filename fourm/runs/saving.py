"""Writes results that are in memory into a folder, as the run that makes them would."""

import time
from collections.abc import Mapping
from dataclasses import replace

from fourm.codecs.table import Codec
from fourm.errors import SampleError
from fourm.output.joining import Joining
from fourm.output.processes import Launch, close_output, now
from fourm.output.samples import Run, SampleWriter
from fourm.runs.device import as_fourm_errors
from fourm.runs.events import Failed
from fourm.runs.job import make_record
from fourm.runs.outputs import Saver
from fourm.runs.pipeline import check
from fourm.runs.request import Request
from fourm.runs.values import Made


def save_made(request: Request, codecs: Mapping[str, Codec], made: Made) -> None:
    """Write one result: the same files that `run` writes for this request, the record included.

    request: with the sample of the result alone, and `out`. UsageError if that folder is not empty.
    """
    started, job = time.perf_counter(), check(request)
    launch, record = Launch(0, 1, now()), make_record(job)
    joining = Joining(request.out, record, launch, record=request.record)
    joining.check()
    writer = SampleWriter(Run(request.out, request.record, record), request.samples, request.recorded_fit)
    saver = Saver(job, codecs, joining.enter(), {}, writer)
    with as_fourm_errors(job.device, job.dtype, request.out):
        events = [*saver.write(made)]
    seconds = round(time.perf_counter() - started, 3)
    close_output(saver.process, replace(launch, finished=now(), saved=len(saver.saved), seconds=seconds))
    if failed := [event for event in events if isinstance(event, Failed)]:
        raise SampleError(failed[0].reason)
