"""The structure of the house: who may import whom, what stays free of torch, how long things may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Every module may import only modules before it (docs/architecture.md).
PLAN = """
fourm fourm.errors fourm.data.locks fourm.data.opening fourm.data.paths fourm.data.png
fourm.data.crops fourm.grammars fourm.modalities.structured
fourm.modalities.boxes fourm.modalities.metadata fourm.modalities.palette
fourm.modalities.numbers fourm.modalities.poses fourm.modalities.instances
fourm.hub.pins fourm.modalities.yamlfile fourm.modalities.registry fourm.modalities.rows fourm.hub.catalogue fourm.hub.cache
fourm.schedule.schemes fourm.schedule.curves fourm.hub.header fourm.hub.files fourm.hub.inventory
fourm.schedule.chain fourm.schedule.language fourm.schedule.plan fourm.schedule.settings fourm.schedule.memory fourm.schedule.cost fourm.runs.events
fourm.data.folders fourm.data.layout fourm.data.shards fourm.data.dataset fourm.output.formats fourm.runs.pickled fourm.runs.convert
fourm.data.prompts fourm.modalities.wordpiece fourm.hub.wanted fourm.runs.inputs fourm.modalities.typed fourm.output.checksums
fourm.output.processes fourm.output.runfile fourm.output.record
fourm.output.results
fourm.output.census fourm.output.ledger fourm.output.verify
fourm.runs.world fourm.runs.request fourm.runs.superres fourm.runs.replay
fourm.hub.hubclient fourm.hub.transfer fourm.hub.remote fourm.hub.store  fourm.hub.download fourm.runs.rawdata fourm.schedule.chart
""".split()
NETS = """
fourm.networks.state fourm.networks.layers fourm.networks.blocks fourm.networks.model fourm.networks.tokenizers fourm.networks.tokenizers.config
fourm.networks.tokenizers.shapes fourm.networks.tokenizers.encoders fourm.networks.tokenizers.quantizers fourm.networks.tokenizers.vq
fourm.networks.tokenizers.diffusion
fourm.networks.tokenizers.unet fourm.networks.tokenizers.uvit_transformer fourm.networks.tokenizers.uvit fourm.networks.tokenizers.divae
fourm.networks.tokenizers.plms fourm.networks.tokenizers.controlnet fourm.networks.tokenizers.build
""".split()
RUN = """
fourm.decoding.sampling fourm.decoding.engine fourm.networks.checkpoint fourm.codecs.files fourm.codecs.coco fourm.codecs.colours
fourm.codecs.drawing fourm.codecs.pictures fourm.codecs.crops fourm.codecs.forms fourm.codecs.images
fourm.codecs.sequences fourm.codecs.parts fourm.codecs.masks fourm.codecs.figures
fourm.codecs.structured fourm.codecs.embeddings fourm.codecs.table
fourm.runs.preview fourm.networks.precision fourm.runs.portions fourm.runs.device fourm.runs.outputs fourm.runs.conditions
fourm.runs.finished fourm.runs.saving
fourm.runs.pipeline fourm.runs.tokenizing
fourm.views.sheets fourm.views.retrieval fourm.views.reading fourm.views.films fourm.views.album
fourm.views.samplesheet fourm.views.strips fourm.views.contact fourm.views.plots fourm.views.gallery.pictures fourm.views.gallery.page
""".split()
CLI = """
fourm_cli fourm_cli.completion fourm_cli.options fourm_cli.run_options fourm_cli.streams
fourm_cli.console fourm_cli.follow
fourm_cli.replay fourm_cli.repeated
fourm_cli.generate fourm_cli.sr fourm_cli.schedules
fourm_cli.models fourm_cli.convert fourm_cli.transfers fourm_cli.download fourm_cli.tokenize
fourm_cli.retrieve fourm_cli.plot fourm_cli.verify fourm_cli.app
fourm_cli.__main__
""".split()
ORDER = [*PLAN, *NETS, *RUN, *CLI]


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted([*(ROOT / "fourm").rglob("*.py"), *(ROOT / "fourm_cli").rglob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Modules imported anywhere in a file, blocks for the type checker aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checking = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in checking:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_its_place() -> None:
    assert set(modules()) == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_what_stands_before_it(name: str) -> None:
    ours = imports(modules()[name]) & set(ORDER)
    late = {other for other in ours if ORDER.index(other) > ORDER.index(name)}
    assert not late


def test_planning_and_the_command_line_never_import_torch() -> None:
    listed = ", ".join([*PLAN, *(name for name in CLI if not name.endswith("__"))])
    code = f"import sys, {listed}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("name", ORDER)
def test_files_and_functions_stay_short(name: str) -> None:
    text = modules()[name].read_text(encoding="utf-8")
    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            counted = [one for one in arguments if one.arg not in ("self", "cls")]
            assert len(counted) <= 8 or name.startswith("fourm_cli"), f"{node.name} has {len(counted)}"


@pytest.mark.parametrize("name", ORDER)
def test_every_module_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(ast.parse(modules()[name].read_text(encoding="utf-8")))


# Functions that open a file by its path, and their calls that do not: of bytes, of open files, for writing.
OPENERS = {"open", "read_text", "read_bytes", "safe_open", "load_file", "fromfile", "memmap", "from_file",
           "ZipFile", "loadtxt", "genfromtxt", "FileIO"}  # fmt: skip
OPEN_ALREADY = (
    "Image.open(io.BytesIO(data)", "Image.open(file,", "gzip.open(io.BytesIO(data))", "archive.open(f'{name}",
    "zipfile.ZipFile(stream)", "zipfile.ZipFile(file)", "tarfile.open(fileobj=", "files(__name__).joinpath(",
)  # fmt: skip
OPENS = {
    "fourm.data.opening": (
        "os.open(path, _FLAGS)",
        "open(path, mode + 'b', opener=",
        "os.open(path, flags | ",
    ),
    # The library maps a file by its name; the file's header was read through `open_file` just before.
    "fourm.networks.checkpoint": ("safe_open(path, framework='pt')",),
    "fourm_cli.app": ("os.open(os.devnull, os.O_WRONLY)",),
    "fourm_cli.streams": ("open(os.devnull, mode)", "os.open(os.devnull, os.O_WRONLY)"),
}


@pytest.mark.parametrize("name", ORDER)
def test_files_are_opened_for_reading_in_one_place_only(name: str) -> None:
    for call in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        text, function = ast.unparse(call), call.func
        is_method = isinstance(function, ast.Attribute)
        opener = function.attr if is_method else getattr(function, "id", "")
        is_ours = not is_method and opener in ("read_text", "read_bytes")
        writes = any(
            ast.unparse(argument) in ("'w'", "'wb'", "'x'", "'xb'", "'a'", "'ab'", "_WRITE")
            for argument in call.args
        )
        if text.startswith(("np.load(", "torch.load(")) or (opener in OPENERS and not is_ours and not writes):
            assert text.startswith((*OPEN_ALREADY, *OPENS.get(name, ())))
