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
from fourm.hub.files import find_model
from fourm.schedule.plan import build_chain
from fourm.schedule.settings import OPTIONS, read_settings
from fourm_cli.options import ScheduleWithSr, option, with_options
from fourm_cli.schedules import schedule_app
from tests.headers import seven


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


def test_validate_says_what_the_run_costs(model: str) -> None:
    data = json.loads(run("validate", "--model", model, "--target", "tok_rgb:steps=5", "--json"))
    assert (data["steps"], data["passes"], data["tokens"], data["fetch_bytes"]) == (5, 10, 196, 0)
    assert data["weights_bytes"] == 4000
    assert data["activations_bytes"] > 10**7
    half = json.loads(run("validate", "--model", model, "--dtype", "bfloat16", "--json"))
    assert half["weights_bytes"] == 2000
    assert "forward passes per sample" in run("validate", "--model", model)


def test_a_dtype_is_read_as_in_generate(model: str) -> None:
    long, short = (run("validate", "--model", model, "--dtype", name) for name in ("float16", "fp16"))
    assert long == short
    with pytest.raises(UsageError, match="--dtype: 'float23' is not one of"):
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
    text = run("show", "--help")
    assert max(map(len, text.splitlines())) <= 100
    for setting in OPTIONS:
        assert setting.flag in text
        assert setting.flag.replace("--", "--sr-", 1) in text
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
    with pytest.raises(UsageError, match=r"--plot .*x\.jpg: must end in \.png"):
        run("show", "--model", model, "--plot", str(tmp_path / "x.jpg"))
    assert list(tmp_path.iterdir()) == []
    photo = tmp_path / "x.png"
    Image.new("RGB", (8, 8), "red").save(photo)
    before = photo.read_bytes()
    with pytest.raises(UsageError, match=r"--plot .*x\.png: holds something else than a drawing"):
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
