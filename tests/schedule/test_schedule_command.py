"""`fourm schedule` from the outside: tables, JSON, cost, exit codes, and that torch stays out."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from fourm.errors import FourMError, MissingError, ScheduleError, UsageError
from fourm.hub.catalogue import CATALOGUE
from fourm.hub.files import find_model
from fourm.schedule.plan import build_chain
from fourm.schedule.settings import OPTIONS, read_settings
from fourm_cli.options import ScheduleWithSr, option, with_options
from fourm_cli.schedules import schedule_app
from tests.headers import seven
from tests.hubcache import put_folder, write_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(seven(tmp_path_factory.mktemp("seven")))


def run(*words: str) -> str:
    result = CliRunner().invoke(schedule_app, list(words), env={"COLUMNS": "100", "NO_COLOR": "1"})
    if isinstance(result.exception, FourMError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_show_prints_the_chain_as_data(model: str) -> None:
    words = ("--cond", "caption", "--targets", "tok_clip-tok_rgb", "--temps", "3.0-0.5", "--steps", "2,1")
    data = json.loads(run("show", "--model", model, *words, "--cfg", "-1.0", "--json"))
    assert list(data) == ["conditions", "top_k", "top_p", "steps"]
    assert data["conditions"] == ["caption"]
    assert data["steps"][2] == {
        "index": 2,
        "target": "tok_rgb@224",
        "scheme": "roar",
        "num_tokens": 196,
        "temperature": 0.5,
        "guidance": -1.0,
        "guided": ["caption", "tok_clip@224"],
    }


def test_show_prints_a_row_for_each_step(model: str) -> None:
    text = run("show", "--model", model, "--targets", "tok_rgb", "--steps", "3", "--temps", "0.5")
    assert [line.split()[0] for line in text.splitlines() if "tok_rgb@224" in line] == ["1", "2", "3"]


def test_a_table_has_the_weights_of_conditions(model: str) -> None:
    words = ("--targets", "tok_clip-tok_rgb", "--steps", "1", "--cfg", "3")
    text = run("show", "--model", model, "--cond", "caption:2,tok_depth:0,det", *words)
    assert [line.split()[6:] for line in text.splitlines()[1:3]] == [
        ["caption:2,", "tok_depth@224:0"],
        ["caption:2,", "tok_depth@224:0,", "tok_clip@224:3"],
    ]
    assert "caption," in run("show", "--model", model, "--cond", "caption,det", *words)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub"


def test_validate_says_what_the_run_costs(model: str, empty_cache: Path) -> None:
    data = json.loads(run("validate", "--model", model, "--target", "tok_rgb:steps=5", "--json"))
    assert (data["steps"], data["passes"], data["tokens"]) == (5, 10, 196)
    sizes = CATALOGUE["tok-rgb"].sizes
    assert sizes is not None
    assert data["weights_bytes"] == 4000 + 4 * (sizes.codebook + sizes.decoder)
    assert data["activations_bytes"] > 10**7
    words = ("--cond", "none", "--targets", "caption", "--dtype", "bfloat16")
    half = json.loads(run("validate", "--model", model, *words, "--json"))
    assert half["weights_bytes"] == 2000
    assert "forward passes per sample" in run("validate", "--model", model)


@pytest.mark.parametrize(("curve", "passes"), [("constant", 10), ("linear", 9), ("interval:0.2:0.8", 8)])
def test_steps_without_guidance_cost_one_pass(model: str, curve: str, passes: int) -> None:
    target = f"tok_rgb:scheme=halton,steps=5,token-schedule=arccos,cfg=3,cfg-schedule={curve}"
    assert json.loads(run("validate", "--model", model, "--target", target, "--json"))["passes"] == passes


@pytest.mark.parametrize("name", [name for name, entry in CATALOGUE.items() if entry.is_model])
def test_every_released_model_is_planned_with_nothing_on_this_machine(name: str, empty_cache: Path) -> None:
    words = ("--cond", "tok_rgb@224", "--targets", "tok_rgb@448") if "sr" in name else ()
    found = json.loads(run("validate", "--model", name, *words, "--json"))
    assert found["fetch"] == [name, *(["tok-rgb"] if words else ["tok-clip", "tok-rgb", "text-tokenizer"])]
    assert found["fetch_bytes"] == sum(CATALOGUE[part].num_bytes for part in found["fetch"])
    weights = CATALOGUE[name].num_bytes
    assert 0.8 * weights < found["weights_bytes"] < 1.8 * weights
    assert json.loads(run("show", "--model", name, *words, "--json"))["steps"]


def test_what_is_to_be_fetched_is_what_the_chain_needs_and_is_not_here(
    empty_cache: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    def fetched(*words: str) -> list[str]:
        code, out, _ = run("schedule", "validate", "--json", *words)
        assert code == 0
        found = json.loads(out)
        stages = [found, *([found["sr"]] if "sr" in found else [])]
        assert all((one["fetch_bytes"] > 0) == bool(one["fetch"]) for one in stages)
        return [name for one in stages for name in one["fetch"]]

    assert fetched() == []  # the embedded model
    maps = ("--model", "4m-7-b", "--targets", "tok_depth", "--cond")
    assert fetched(*maps, "rgb") == ["4m-7-b", "tok-depth"]
    assert fetched(*maps, "tok_rgb,det") == ["4m-7-b", "tok-depth", "text-tokenizer"]
    assert fetched(*maps, "normal") == ["4m-7-b", "tok-depth", "tok-normal"]
    sr_run = ("--model", "4m-7-b", "--sr-model", "4m-7-sr-l", "--targets", "tok_rgb", "--sr-targets")
    assert fetched(*sr_run, "tok_rgb@448") == ["4m-7-b", "tok-rgb", "text-tokenizer", "4m-7-sr-l"]
    put_folder(empty_cache, CATALOGUE["tok-depth"].hub_id, write_tokenizer(tmp_path / "depth", 8192))
    assert fetched(*maps, "rgb") == ["4m-7-b"]
    put_folder(empty_cache, CATALOGUE["4m-7-b"].hub_id, seven(tmp_path / "seven"))
    assert fetched(*maps, "rgb") == []
    folder = ("--model", str(tmp_path / "seven"))
    assert fetched(*folder, "--targets", "tok_clip") == ["tok-clip", "text-tokenizer"]
    code, out, err = run("schedule", "validate", "--model", "4m-7-l")
    assert (code, re.findall("to fetch.*", out)[0].split()) == (0, ["to", "fetch", "6.02", "GB"])
    assert "`fourm download 4m-7-l tok-clip tok-rgb text-tokenizer` fetches what is not here" in err
    code, out, err = run("generate", "a lake", "--model", "4m-7-l")
    assert (code, out) == (4, "")
    assert err == "fourm: model '4m-7-l' is not on this machine; `fourm download 4m-7-l` fetches it\n"


def test_the_size_of_what_only_the_hub_knows_is_not_made_up(empty_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("model: 4m-7-b\nrgb_tok_id: me/rgb\ntarget_domains: tok_rgb\n")
    with pytest.raises(MissingError, match=r"size of 'me/rgb' is not known.*`fourm download me/rgb`"):
        run("validate", "-c", str(tmp_path / "x.yaml"))


def test_a_dtype_is_read_as_in_generate(model: str) -> None:
    long, short = (run("validate", "--model", model, "--dtype", name) for name in ("float16", "fp16"))
    assert long == short
    with pytest.raises(UsageError, match="`dtype`: 'float23' is not one of"):
        run("validate", "--model", model, "--dtype", "float23")


def test_a_text_counts_a_pass_for_every_token(model: str) -> None:
    data = json.loads(run("validate", "--model", model, "--cond", "rgb", "--targets", "det", "--json"))
    assert (data["passes"], data["tokens"]) == (256, 256)


def test_a_chain_without_conditions_says_so(model: str) -> None:
    said = run("validate", "--model", model, "--cond", "none", "--targets", "tok_rgb")
    assert re.search(r"^conditions +none\s*$", said, re.MULTILINE)


def test_yaml_files_come_before_options(model: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"model: {model}\ntarget_domains: tok_rgb\ndecoding_steps: 9\ntemps: 0.5\n")
    data = json.loads(run("show", "-gc", str(path), "--steps", "2", "--json"))
    assert [step["temperature"] for step in data["steps"]] == pytest.approx([0.5, 0.5])


def test_mistakes_are_raised_as_sentences_before_anything_is_loaded(model: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        run("validate", "--model", model, "--temps", "warm", "--targets", "tok_rbg")
    assert len(caught.value.problems) == 2
    assert caught.value.exit_code == 2
    with pytest.raises(MissingError):
        run("validate", "--model", "no/such-model")


def test_help_fits_and_names_every_option() -> None:
    text, everything = run("show", "--help"), run("show", "--help-all")
    assert max(map(len, (text + everything).splitlines())) <= 100
    for setting in OPTIONS:
        assert setting.flag in everything
        assert setting.flag.replace("--", "--sr-", 1) in everything
    assert "Examples" in text


def test_a_command_gets_what_was_given_and_nothing_else() -> None:
    app, seen = typer.Typer(), list[dict[str, object]]()

    @with_options(name=option("A name."))
    def command(schedule: ScheduleWithSr, name: str = "x") -> None:
        seen.append({"name": name, **schedule})

    app.command()(command)
    words = ["--temps", "-1.0", "--sr-temps", "2", "--target", "a", "--target", "b", "--no-grow-cond"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert seen == [
        {"name": "x", "temps": "-1.0", "sr_temps": "2", "target": ["a", "b"], "cfg_grow_conditioning": False}
    ]


def test_the_schedule_commands_never_import_torch(model: str) -> None:
    code = (
        "import sys; from fourm_cli.schedules import schedule_app\n"
        f"schedule_app(['validate', '--model', {model!r}], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2], capture_output=True
    )


def test_what_is_kept_shortens_the_chain_as_far_as_it_is_known() -> None:
    def counts(*words: str) -> list[int]:
        data = json.loads(run("show", "--cond", "caption", "--steps", "4", *words, "--json"))
        return [step["num_tokens"] for step in data["steps"]]

    assert counts("--keep", "rgb:0.75") == [4, 4, 4, 4]
    assert counts("--keep", "rgb:0.98") == [1]
    assert counts("--keep", "rgb:mask") == [16, 16, 16, 16]
    table = run(
        "show", "--keep", "rgb:box:0,0,.5,1", "--keep", "caption", "--targets", "tok_rgb", "--steps", "4"
    )
    assert "up to 16" in table
    assert "up to 32" in table
    costs = run("validate", "--keep", "rgb:mask", "--cond", "none")
    assert re.search(r"tokens per sample +up to 64", costs)
    assert re.search(r"kept +rgb@64:mask", costs)
    assert re.search(r"tokens per sample +32\b", run("validate", "--keep", "rgb:0.5", "--cond", "none"))


DOCS = Path(__file__).resolve().parents[2] / "docs" / "schedules.md"


def test_the_documented_table_is_the_table_of_settings() -> None:
    text = DOCS.read_text()
    for setting in OPTIONS:
        words = [f"`{setting.flag}`", f"`{setting.key}`", setting.item.value[0], setting.help]
        row = next(line for line in text.splitlines() if line.startswith("| " + words[0]))
        assert all(word in row for word in words), row


def test_the_documented_examples_work(model: str) -> None:
    lines = [line for line in DOCS.read_text().splitlines() if line.startswith("fourm schedule")]
    assert len(lines) == 4
    for line in lines:
        command, *words = line.partition("#")[0].split()[2:]
        assert run(command, "--model", model, *words)


def test_show_draws_the_chain(model: str, tmp_path: Path) -> None:
    words = ("show", "--model", model, "--target", "tok_clip:steps=4", "--target", "tok_rgb:steps=3")
    path = tmp_path / "new" / "chain.png"
    text = run(*words, "--plot", str(path))
    assert text == run(*words)
    assert run(*words, "--plot", str(path)) == text  # a chart may be drawn anew
    assert [one.name for one in path.parent.iterdir()] == ["chain.png"]
    picture = Image.open(path).convert("RGB")
    assert picture.width >= 1000
    seen = {colour for _, colour in picture.getcolors(1 << 20) or []}
    assert {(31, 119, 180), (255, 127, 14)} <= seen  # a colour for each target


def test_the_chart_has_the_numbers_of_the_steps(model: str) -> None:
    from fourm.views.chart import draw_chain

    given = {"cond_domains": "caption", "target_domains": "tok_clip-det", "decoding_steps": "4-none"}
    chain = build_chain(read_settings([], given).base, find_model(model))
    tokens, temperature, guidance = draw_chain(chain, "a $model$").axes
    left, right = guidance.get_xlim()
    assert all(left <= bar.get_x() <= bar.get_x() + bar.get_width() <= right for bar in tokens.patches)
    assert left > 0  # there is no step 0
    assert [round(patch.get_x() + patch.get_width() / 2) for patch in tokens.patches] == [1, 2, 3, 4, 5]
    bars = [patch.get_height() for patch in tokens.patches]
    assert bars[:4] == [49] * 4
    assert bars[4] == 98  # at most so many, cut off so that the others are seen
    assert [text.get_text() for text in tokens.texts] == ["≤ 256"]
    for axes, name in ((temperature, "temperature"), (guidance, "guidance")):
        assert [x for line in axes.lines for x in line.get_xdata()] == [1, 2, 3, 4, 5]
        drawn = [value for line in axes.lines for value in line.get_ydata()]
        assert drawn == pytest.approx([getattr(step, name) for step in chain.steps])


@pytest.mark.parametrize(("conditions", "charts"), [("caption:2,det:-1", 3), ("caption,det", 2)])
def test_a_chart_has_guidance_where_weights_add_up_to_one(model: str, conditions: str, charts: int) -> None:
    from fourm.views.chart import draw_chain

    given = {"cond_domains": conditions, "target_domains": "tok_rgb", "cfg_scales": "1"}
    chain = build_chain(read_settings([], given).base, find_model(model))
    assert {step.guidance for step in chain.steps} == {1.0}
    assert len(draw_chain(chain, "a model").axes) == charts


def test_a_chart_is_a_png_and_nothing_else(model: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`plot=.*x\.jpg`: must end in \.png"):
        run("show", "--model", model, "--plot", str(tmp_path / "x.jpg"))
    assert list(tmp_path.iterdir()) == []
    photo = tmp_path / "x.png"
    Image.new("RGB", (8, 8), "red").save(photo)
    before = photo.read_bytes()
    with pytest.raises(UsageError, match=r"`plot=.*x\.png`: holds something else than a drawing"):
        run("show", "--model", model, "--plot", str(photo))
    assert photo.read_bytes() == before


def test_only_a_chart_imports_matplotlib(model: str) -> None:
    code = (
        "import sys; from fourm_cli.schedules import schedule_app\n"
        f"schedule_app(['show', '--model', {model!r}], standalone_mode=False)\n"
        "sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_super_resolution_is_checked_and_shown_where_it_is_asked_for(
    run: Callable[..., tuple[int, str, str]],
) -> None:
    code, out, err = run(
        "schedule", "show", "--targets", "tok_rgb", "--steps", "2", "--sr-steps", "3", "--json"
    )
    assert (code, err) == (0, "")
    shown = json.loads(out)
    assert [step["target"] for step in shown["steps"]] == ["tok_rgb@64"] * 2
    assert [step["target"] for step in shown["sr"]["steps"]] == ["tok_rgb@128"] * 3
    assert shown["sr"]["conditions"] == ["caption", "tok_rgb@64"]
    code, out, _ = run("schedule", "validate", "--sr-cfg", "3", "--json")
    assert (code, json.loads(out)["sr"]["model"]) == (0, "demo-sr")
    assert "super-resolution" in run("schedule", "validate", "--sr-cfg", "3")[1]
    assert "super-resolution" not in run("schedule", "validate", "--cfg", "3")[1]
    code, out, err = run("schedule", "validate", "--sr-temps", "-1")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "--sr-temps" in err
    assert "-1" in err
