"""YAML files and options: the reference's files unchanged, precedence, wrong keys and their lines."""

import json
from pathlib import Path
from typing import Any

import pytest

from fourm.errors import ScheduleError, UsageError
from fourm.hub.files import find_model
from fourm.schedule.chain import Chain
from fourm.schedule.plan import build_chain
from fourm.schedule.settings import OPTIONS, RunSettings, Settings, read_settings
from tests.headers import fine, seven

ROOT = Path(__file__).resolve().parents[2]
CFGS = ROOT / "cfgs"
KEYS = {prefix + option.key for option in OPTIONS for prefix in ("", "sr_")}
# How a call of the reference's script is said here.
RENAMED = {"--cond_domains": "cond_domains", "--temps": "temps", "--sr_cond_domains": "sr_cond_domains"}


def settings_of(argv: list[str]) -> Settings:
    configs, options, words = list[Path](), dict[str, object](), iter(argv)
    for word in words:
        if word in ("-c", "-dc", "-gc", "-src"):
            configs.append(ROOT / next(words).replace("cfgs/default", "cfgs"))
        elif word == "--no_cfg_grow_conditioning":
            options["cfg_grow_conditioning"] = False
        elif word in RENAMED:
            options[RENAMED[word]] = next(words)
        else:
            next(words)
    return read_settings(configs, options)


def compare(chain: Chain, wanted: dict[str, Any], prefix: str) -> None:
    assert list(chain.conditions) == wanted[prefix + "cond_domains"]
    columns = {
        "target_domains": "target", "tokens_per_target": "num_tokens", "autoregression_schemes": "scheme",
        "decoding_steps": "num_steps", "token_decoding_schedules": "token_curve", "temps": "temperature",
        "temp_schedules": "temperature_curve", "cfg_scales": "guidance", "cfg_schedules": "guidance_curve",
    }  # fmt: skip
    for key, field in columns.items():
        assert [getattr(spec, field) for spec in chain.specs] == wanted[prefix + key], key
    assert chain.grow == wanted[prefix + "cfg_grow_conditioning"]
    assert (chain.top_p, chain.top_k) == (wanted[prefix + "top_p"], wanted[prefix + "top_k"])


@pytest.mark.parametrize("case_id", ["readme_example", "option_beats_config"])
def test_a_recorded_call_resolves_to_the_recorded_settings(
    golden: Path, tmp_path: Path, case_id: str
) -> None:
    cases = json.loads((golden / "data" / "cli.json").read_text())["resolved"]
    case = next(c for c in cases if c["id"] == case_id)
    wanted, settings = case["result"], settings_of(case["argv"])
    base = build_chain(settings.base, find_model(seven(tmp_path / "base")))
    compare(base, wanted, "")
    compare(build_chain(settings.sr, find_model(fine(tmp_path / "sr")), made=base.modalities), wanted, "sr_")
    run = settings.run
    keys = ("model", "sr_model", "data_path", "num_samples", "num_variations", "detokenizer_steps")
    for key in (*keys, "name", "sr_name", "data_name"):
        assert getattr(run, key) == wanted[key], key
    assert run.folder == Path("output", wanted["output_dir"].partition(">/")[2])


def test_the_script_defaults_can_be_said(golden: Path, tmp_path: Path) -> None:
    """The reference's own defaults name modalities that do not exist; as options, they hold."""
    data = json.loads((golden / "data" / "cli.json").read_text())
    wanted = next(c for c in data["resolved"] if c["id"] == "no_config")["result"]
    keys = [key for key in data["defaults"] if key in KEYS]
    settings = read_settings([], {key: data["defaults"][key] for key in keys})
    chain = build_chain(settings.base, find_model(seven(tmp_path)))
    assert chain.top_p == 1.0  # 0.0 there: off
    full = {**wanted, "top_p": 1.0, "target_domains": [name + "@224" for name in wanted["target_domains"]]}
    compare(chain, full, "")


def test_every_shipped_file_is_read(tmp_path: Path) -> None:
    files = sorted(CFGS.glob("generation/*/*.yaml")) + sorted(CFGS.glob("demo/*.yaml"))
    assert len(files) >= 13
    for path in files:
        settings = read_settings([path], {})
        assert settings.base.problems == (), path


def test_options_win_over_files_and_later_files_over_earlier_ones(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("temps: 1.0\ncfg_scales: 1.0\ntop_p: 0.1\nseed: 1\n")
    second.write_text("cfg-scales: 2.0\ntop_p: 0.2\nseed: 2\n")
    settings = read_settings([first, second], {"top_p": "0.3"})
    chain = build_chain(settings.base, find_model(seven(tmp_path / "model")))
    assert {(s.temperature, s.guidance) for s in chain.specs} == {(1.0, 2.0)}
    assert chain.top_p == 0.3
    assert settings.run == RunSettings(seed=2)


def test_whole_targets_replace_the_lists_of_earlier_files_only(tmp_path: Path) -> None:
    model = find_model(seven(tmp_path / "model"))
    recipe = CFGS / "generation" / "settings_base" / "T2CR_roar49-25_cfg3_t6-0.5.yaml"
    chain = build_chain(read_settings([recipe], {"target": ["tok_rgb:steps=5"]}).base, model)
    assert [(s.target, s.num_steps) for s in chain.specs] == [("tok_rgb@224", 5)]
    file = tmp_path / "t.yaml"
    file.write_text("target:\n  - tok_rgb:steps=5\n")
    chain = build_chain(read_settings([file], {"target_domains": "tok_clip"}).base, model)
    assert chain.targets == ("tok_clip@224",)


def test_a_setting_of_a_file_is_wrong_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("temps: 1-2-3\ndecoding_stepss: 3\n\nseed: many\ndtype: fp61\nactivate_controlnet: true\n"
                    "model: 7\nnum_variations: 0\nsr_temps: hot\n")  # fmt: skip
    with pytest.raises(ScheduleError) as caught:
        build_chain(read_settings([path], {}).base, find_model(seven(tmp_path / "model")))
    said = str(caught.value)
    for line in (
        f"{path}, line 2: unknown key 'decoding_stepss'; did you mean 'decoding_steps'?",
        f"{path}, line 4: 'seed' is 'many', expected a whole number",
        f"{path}, line 5: 'dtype' must be one of",
        f"{path}, line 6: 'activate_controlnet' must be false",
        f"{path}, line 7: 'model' is 7, expected text",
        f"{path}, line 8: 'num_variations' is 0, expected a whole number, 1 to",
        f"{path}, line 9: sr_temps: 'hot' is not a number",
        f"{path}, line 1: temps: 3 values for 2 targets",
    ):
        assert line in said
    assert len(caught.value.problems) == 8


def test_a_dtype_has_its_full_name_and_tokenizers_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("dtype: bf16\nrgb_tok_id: some/tokenizer\nedges_tok_id: null\nwandb_mode: online\n")
    run = read_settings([path], {}).run
    assert run == RunSettings(dtype="bfloat16", tokenizers={"rgb": "some/tokenizer"})


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"gone\.yaml: no such file"):
        read_settings([Path("gone.yaml")], {})


def test_recorded_lists_are_broadcast_or_refused_by_their_count(golden: Path, tmp_path: Path) -> None:
    """The reference hands lists of a wrong count on as they are (defect 32); here that is a mistake."""
    cases = json.loads((golden / "data" / "cli.json").read_text())["broadcast"]
    assert len(cases) == 5
    targets = ("tok_clip", "tok_rgb", "tok_depth", "tok_normal")
    for case in cases:
        given = {"temps": case["list"], "target_domains": list(targets[: case["n"]])}
        settings = read_settings([], {"cond_domains": "caption", **given})
        if len(case["list"]) not in (1, case["n"]):
            with pytest.raises(ScheduleError, match=f"{len(case['list'])} values for {case['n']} targets"):
                build_chain(settings.base, find_model(seven(tmp_path)))
        elif case["list"] != [None]:  # nothing said: each modality's own default
            chain = build_chain(settings.base, find_model(seven(tmp_path)))
            assert [spec.temperature for spec in chain.specs] == case["result"]


def test_the_recorded_automatic_name_is_the_folder_of_a_run(golden: Path) -> None:
    """`wandb_run_name` belongs to a tracker that there is not."""
    names = json.loads((golden / "data" / "cli.json").read_text())["auto_names"]
    settings = settings_of(["-c", names["config_path"]])
    assert settings.run.folder == Path(names["output_dir"])
