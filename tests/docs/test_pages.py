"""The pages stay true: what they link to and name exists, their commands parse, their code runs.

A block that cannot be run here has `<!-- not run: why -->` on the line before it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mtkd import catalog, cli, zoo
from mtkd.data.images import read_image, write_image
from mtkd.inference.evaluate import Evaluation
from mtkd.inference.results import write_results
from mtkd.training.loop import train
from tests.docs.pages import PAGES, ROOT, anchors, blocks, commands, commands_of, links, module_of_the_site, spans
from tests.runs import run_options

FOLLOWED = {"CONTRIBUTING.md": "tests/test_contributing.py"}
"""Page whose Python another test follows to the letter."""

ELSEWHERE = {
    "mtkd.distill(": "tests/distilling/test_run.py",  # takes minutes, and a teacher
    'mtkd.load("hf:': "tests/inference/test_hub.py",  # needs a repository of the hub
    "mtkd.export.export(": "tests/export/test_export.py",  # as the command of the same page
}
"""What a block of Python does that is not done here -> the test that does it, with what it needs."""

RUN = {
    "README.md": [
        "mtkd upscale photo.jpg out.png",
        "mtkd distill photos/ --teacher CRAFT_x4.pth --student tiny --scale 4 --minutes 10",
        "mtkd export distilled/photos_tiny_x4 student.onnx student.param",
        "mtkd list methods",
        "mtkd list recipes",
        "mtkd zoo list --scale 4",
        "mtkd compare results/A results/B",
        "mtkd data list",
        "mtkd upscale photos/ upscaled/ --weights experiments/MTKD_edsr_m_x4_best",
        "mtkd distill photos/ --teacher CRAFT_x4.pth --scale 4",
        "mtkd init mine.yml --photos photos/ --teacher CRAFT_x4.pth --scale 4",
        "mtkd export experiments/MTKD_edsr_m_x4_best edsr.onnx",
        "mtkd cache",
    ],
    "CONTRIBUTING.md": ["mtkd config schema"],
    "datasets/README.md": [
        "mtkd data list",
        "mtkd data manifest datasets/DIV2K/DIV2K_train_HR",
        "mtkd data lr my/HR my/LR_bicubic --scale 2 3 4",
        "mtkd data check my/HR --lq my/LR_bicubic/X4 --scale 4 --filename_tmpl {}x4 --gt_size 192",
        "mtkd data check my/HR --lq my/LR_bicubic/X4 --scale 4 --filename_tmpl {}x4 --bicubic",
        "mtkd data meta datasets/Flickr2K/Flickr2K_HR datasets/Flickr2K/meta_info.txt --min_size 192",
    ],
    "docs/distill.md": [
        "mtkd distill photos --teacher CRAFT_x4.pth --scale 4",
        "mtkd init mine.yml --photos photos --teacher CRAFT_x4.pth --scale 4 --iterations 20000",
        "mtkd check mine.yml",
        "mtkd teach -opt mine.yml",
        "mtkd train -opt mine.yml",
    ],
    "docs/zoo.md": [
        "mtkd zoo list --arch RCAN --scale 4",
        "mtkd zoo info rcan_x4",
        "mtkd zoo verify",
        "mtkd zoo convert IN OUT --to safetensors",
    ],
    "docs/start.md": [
        "mtkd upscale photo.jpg out.png",
        "mtkd upscale photo.jpg own.png --weights mine/student.safetensors",
        "mtkd export mine/student.safetensors student.onnx student.param",
    ],
    "docs/deploy.md": [
        "mtkd export tiny_x4 tiny.onnx",
        "mtkd upscale photo.jpg out.png --weights tiny.onnx",
        "mtkd export tiny_x4 models/tiny-x4.param",
        "mtkd export tiny_x4 deploy/ --format onnx ncnn torch safetensors --precision fp32 fp16 int8 --photos photos/",
    ],
    "docs/photos.md": [
        "mtkd upscale photo.jpg large.png",
        "mtkd upscale photos/ large/",
        "mtkd upscale photo.jpg photos/trip out/",
        "mtkd upscale photos/**/*.jpg jpgs/ --format jpg --quality 90",
        "mtkd upscale photo.jpg own.png --weights experiments/my_student",
        "mtkd upscale photo.jpg onnx.png --weights my_student.onnx",
    ],
    "docs/reports.md": [
        "mtkd compare results/A results/B",
        "mtkd compare experiments/A experiments/B",
        "mtkd compare results/comparison_x4:net_a results/comparison_x4:net_b --metric psnr --csv out.csv",
        "mtkd compare --a results/A_1 results/A_2 results/A_3 --b results/B_1 results/B_2 results/B_3",
    ],
    "docs/training.md": [
        "mtkd check first.yml --data",
        "mtkd train -opt first.yml",
        "mtkd train -opt first.yml --auto_resume",
        "mtkd test experiments/first_run --which best --data held_out",
        "mtkd cache",
        "mtkd cache clear images --older_than 30",
        "mtkd cache clear --all --yes",
    ],
}
"""Page -> its commands that are run, in its order, in a folder that `made` fills; SHORTER makes some of them short."""

SHORTER = {
    "mtkd train": ("--force_yml", "train:total_iter=4", "val:val_freq=2", "datasets:train:batch_size_per_gpu=2"),
    "mtkd distill": ("--iterations", "2"),
}
"""What is added to a command, so that it takes seconds; `--minutes N` is left out."""

APART = {
    "mtkd distill": ("tests/distilling/test_run.py", "a teacher that must be downloaded, or as above"),
    "mtkd demo": ("Makefile", "minutes; `make demo` runs it, and no test does"),
    "mtkd train": (
        "tests/test_recipes.py",
        "DIV2K and published weights; there every recipe trains on small stand-ins",
    ),
    "mtkd teach": ("tests/targets/test_make.py", "DIV2K and published weights"),
    "mtkd test": ("tests/inference", "published weights and test sets"),
    "mtkd check options/": ("tests/config/test_option_files.py", "every file, at every scale"),
    "mtkd bench": ("tests/bench/test_run.py", "hours"),
    "mtkd data": ("tests/data", "archives of published sets"),
    "mtkd upscale": ("tests/inference/test_photos.py", "published weights, the hub, a pipe"),
    "mtkd export": ("tests/export", "minutes"),
    "mtkd push": ("tests/inference/test_hub.py", "a repository of the hub"),
    "mtkd zoo": ("tests/zoo", "a download"),
    "make": ("Makefile", "CI"),
    "python -m mtkd.config.page": ("tests/config", "writes a page"),
    "python benchmarks/gpu.py": ("tests/test_gpu_rehearsal.py", "a GPU"),
    "python -m tests.hostile.soak": ("tests/hostile", "minutes"),
}
"""Beginning of commands that are not run here -> the tests that run them small, and what they need."""

OTHERS = {"pip", "cd", "mkdir", "bash", "export", "source", "xdg-open"}
"""Programs that are not ours, and stand in the pages."""

PATHS = re.compile(r"(?:mtkd|tests|docs|options|benchmarks|datasets)/[\w./-]+\.(?:py|md|yml|json|csv|txt|html)")
WRITTEN = re.compile(
    r"NAME|ITER|datasets/(?!README|demo)"
    r"|mtkd/(losses/huber|archs/espcn|methods/edge_kd|metrics/mae|commands/size)"  # the examples of CONTRIBUTING.md
)
"""Files that a reader makes or fetches."""


def full(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The same parser, which takes no abbreviated options: those end when an option joins them."""
    parser.allow_abbrev = False
    for child in children(parser).values():
        full(child)
    return parser


def children(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Its sub-commands by name."""
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0]) if found else {}


def options(parser: argparse.ArgumentParser) -> set[str]:
    """Options of a parser and of its sub-commands."""
    own = set(parser._option_string_actions)
    return own.union(*(options(child) for child in children(parser).values()))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_are_there(page: str) -> None:
    wrong = [target for target in links(page) if not re.match(r"https?:|mailto:", target) and not leads(page, target)]
    assert wrong == [], f"{page} links to what is not there"


def leads(page: str, target: str) -> bool:
    """Does a link of that page lead to something inside the repository?"""
    path, _, anchor = target.partition("#")
    file = ((ROOT / page).parent / path if path else ROOT / page).resolve()
    if not file.exists() or not file.is_relative_to(ROOT):
        return False
    return not anchor or anchor in anchors(str(file.relative_to(ROOT)))


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("CHANGELOG.md", "docs/log.md")])
def test_files_that_are_named_are_there(page: str) -> None:
    named = {span for span in spans(page) if PATHS.fullmatch(span)}
    missing = [path for path in sorted(named) if not (ROOT / path).exists() and not WRITTEN.search(path)]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [f"{where}: {problem}" for where, words in commands(page) if (problem := problem_of(words))]
    assert wrong == [], capsys.readouterr().err


def problem_of(words: list[str]) -> str | None:
    """What is wrong with one command; None: nothing that can be seen without running it."""
    program, *rest = words
    if program in ("torchrun", "srun") and "mtkd" in rest:
        program, rest = "mtkd", rest[rest.index("mtkd") + 1 :]
    if program == "python" and rest[:2] == ["-m", "mtkd"]:
        program, rest = "mtkd", rest[2:]
    if program == "mtkd":
        return problem_of_arguments(rest)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        return None if rest and rest[0] in targets else f"the Makefile has no target {rest[:1]}"
    if program == "python" and rest[0] == "-m":
        return None if rest[1] in ("pip", "venv") or importlib.util.find_spec(rest[1]) else f"no module {rest[1]}"
    if program == "python":
        return None if (ROOT / rest[0]).exists() else f"no file {rest[0]}"
    return None if program in OTHERS else f"{program} is no program that the pages use"


def problem_of_arguments(arguments: list[str]) -> str | None:
    """What mtkd's own command line says to them."""
    try:
        full(cli.parser()).parse_args(arguments)
    except SystemExit as end:
        return None if end.code == 0 else f"mtkd {' '.join(arguments)} does not parse"
    gone = [one for one in arguments if re.match(r"(options|benchmarks)/", one) and not (ROOT / one).exists()]
    return f"{gone[0]} is not there" if gone else None


@pytest.mark.parametrize(
    "line",
    [
        "mtkd upscales photo.jpg out.png",  # no such command
        "mtkd upscale photo.jpg out.png --tile_sizes 64",  # no such option
        "mtkd upscale photo.jpg out.png --tile_si 64",  # abbreviated
        "mtkd train",  # something is missing
        "mtkd train -opt options/train/none.yml",
        "python -m mtkd list recipe",
        "make coffee",
        "python benchmarks/none.py",
        "python -m mtkd_none",
        "frobnicate photo.jpg",
    ],
)
def test_a_wrong_command_is_found(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert problem_of(line.split())


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("CHANGELOG.md", "docs/log.md")])
def test_commands_in_sentences_have_the_options_that_are_named(page: str) -> None:
    wrong = []
    for span in spans(page):
        words = span.split()
        if words[:1] != ["mtkd"] or len(words) < 2 or not re.fullmatch(r"[a-z]+", words[1]):
            continue
        parser = children(cli.parser()).get(words[1])
        unknown = parser and set(re.findall(r"(?<!\S)--?[a-z][\w-]*", span)) - options(parser)
        if parser is None or unknown:
            wrong.append(span)
    assert wrong == []


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two iterations at x4."""
    place = tmp_path_factory.mktemp("pages")
    write_image(place / "photos/1.png", read_image(sorted((ROOT / "datasets/demo/test").glob("*.png"))[0])[:96, :96])
    network = {"type": "EDSR", "num_feat": 4, "num_block": 1}
    train(run_options(place, images=place / "photos", name="run", scale=4, network_g=network, train={"total_iter": 2}))
    return place / "experiments/run"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_folder: Path) -> Path:
    """The folder of a reader, in which we are: a photograph, folders of them, runs, a teacher, a distilled student."""
    photographs = sorted((ROOT / "datasets/demo/test").glob("*.png"))
    write_image(tmp_path / "photo.jpg", read_image(photographs[0])[:96, :144])
    for folder in ("photos", "held_out"):
        for number, file in enumerate(photographs):
            write_image(tmp_path / folder / f"{number + 1}.jpg", read_image(file)[100:292, 200:392])
    for name in ("MTKD_edsr_m_x4_best", "my_student"):
        shutil.copytree(run_folder, tmp_path / "experiments" / name)
    shutil.copy(run_folder / "models/net_g_latest.pth", tmp_path / "CRAFT_x4.pth")
    (tmp_path / "mine").mkdir()
    shutil.copy(zoo.resolve("zoo:tiny_x4"), tmp_path / "mine/student.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fill(page: str) -> None:
    """Add what the commands of `page` read beside that."""
    if page == "datasets/README.md":
        for folder in ("my/HR", "datasets/DIV2K/DIV2K_train_HR", "datasets/Flickr2K/Flickr2K_HR"):
            for number in (1, 2):
                write_image(Path(folder) / f"{number}.png", read_image(Path(f"photos/{number}.jpg")))
    elif page == "docs/photos.md":
        shutil.copytree("held_out", "photos/trip")
        assert cli.main(["export", "experiments/my_student", "my_student.onnx"]) == 0
    elif page == "docs/training.md":
        (block,) = [block for block in blocks(page) if "name: first_run" in block.text]
        Path("first.yml").write_text(block.text, encoding="utf-8")
    elif page == "docs/zoo.md":
        shutil.copy("CRAFT_x4.pth", "IN")
    elif page in ("README.md", "docs/reports.md"):
        for folder in ("A", "B", "A_1", "A_2", "A_3", "B_1", "B_2", "B_3"):
            write_results(Path("results") / folder, [measured("net")], {"name": "net"})
        write_results(Path("results/comparison_x4"), [measured("net_a"), measured("net_b")], {"name": "comparison_x4"})
        for name in ("A", "B") if page == "docs/reports.md" else ():
            photos = {"type": "PairedImageDataset", "dataroot_gt": "photos"}
            sets = {"train": {"name": "photos", **photos, "gt_size": 16, "batch_size_per_gpu": 2}}
            val = {"val_freq": 8, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}}
            train(
                run_options(
                    Path.cwd(),
                    images=Path("photos"),
                    name=name,
                    datasets={**sets, "val": {"name": "held_out", **photos}},
                    val=val,
                )
            )


def measured(name: str) -> tuple[str, Evaluation]:
    """A row of results, of noise."""
    values = torch.rand(5, dtype=torch.float64).add(28).tolist()
    return name, Evaluation("Set5", tuple("abcde"), {"psnr": tuple(values), "ssim": tuple(v / 40 for v in values)})


def short(words: list[str]) -> list[str]:
    """The arguments of a command of mtkd, with what makes it short."""
    arguments = words[1:]
    for beginning, more in SHORTER.items():
        if words[: len(beginning.split())] == beginning.split():
            if "--minutes" in arguments:
                at = arguments.index("--minutes")
                arguments = arguments[:at] + arguments[at + 2 :]
            arguments = [*arguments, *more]
    return arguments


def run_of(page: str) -> list[tuple[str, str | list[str]]]:
    """(where, code or the words of a command) of what is run, in the order of the page."""
    found: list[tuple[str, str | list[str]]] = []
    for block in blocks(page):
        left = block.not_run or page in FOLLOWED or any(call in block.text for call in ELSEWHERE)
        if block.language == "python" and not left:
            found.append((block.where, block.text))
        found += [(where, words) for where, words in commands_of(block) if " ".join(words) in RUN.get(page, ())]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if run_of(page)])
def test_code_and_cheap_commands_run_in_the_order_of_the_page(
    page: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("ARCH", "LOSS", "METRIC", "MODEL", "DATASET") if "basicsr" in page else ():
        importlib.import_module("mtkd.basicsr")
        registry = getattr(importlib.import_module("basicsr.utils.registry"), f"{kind}_REGISTRY")
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))  # other tests count on what is in it
    fill(page)
    names: dict[str, Any] = {"__name__": "__page__"}  # what a block defines the next one may use, as for a reader
    for where, what in run_of(page):
        if isinstance(what, str):
            exec(compile(what, where, "exec"), names)
        else:
            assert cli.main(short(what)) == 0, where


def test_every_other_command_is_run_small_by_a_test_of_its_own() -> None:
    left = [
        f"{where}: {' '.join(words)}"
        for page in PAGES
        if page not in ("CHANGELOG.md", "docs/log.md")
        for where, words in commands(page)
        if words[0] not in OTHERS and " ".join(words) not in RUN.get(page, ())
        if not any(" ".join([*words, ""]).startswith(f"{beginning} ") for beginning in APART)
    ]
    assert left == [], "run them in RUN, or name the test that does in APART"
    assert [test for test, _ in APART.values() if not (ROOT / test).exists()] == []


@pytest.mark.parametrize("page", RUN)
def test_every_command_that_is_run_stands_on_its_page(page: str) -> None:
    assert set(RUN[page]) - {" ".join(words) for _, words in commands(page)} == set()


def test_what_is_not_run_says_why_and_every_block_has_a_language_that_is_known() -> None:
    known = {"", "sh", "bash", "yaml", "python", "py", "text", "json", "toml", "cpp", "console"}
    every = [block for page in PAGES for block in blocks(page)]
    assert len(every) > 40
    assert [block.where for block in every if block.language not in known] == []
    assert [test for test in (*FOLLOWED.values(), *ELSEWHERE.values()) if not (ROOT / test).exists()] == []


@pytest.mark.parametrize("kind", ["arch", "loss", "metric"])
def test_what_the_catalog_names_has_its_docstring_in_the_site(kind: catalog.Kind) -> None:
    shown = {
        line.removeprefix("::: ")
        for page in PAGES
        if page.startswith("docs/api/")
        for line in (ROOT / page).read_text(encoding="utf-8").splitlines()
        if line.startswith("::: ")
    }
    assert {path.replace(":", ".") for path in catalog.TABLES[kind].values()} - shown == set()


def test_the_front_page_tells_the_scores_of_the_student_that_is_shipped() -> None:
    front = module_of_the_site("front")
    net = front.load_network(front.STUDENT)
    values = [[value for _, value in front.row(net, name)] for name in front.CROPS]
    shown = front.PAGE.read_text(encoding="utf-8").partition(front.BEGIN)[2].partition(front.END)[0]
    told = [float(number) for number in re.findall(r"\d+\.\d\d", shown)]
    assert told == pytest.approx([row[1] for row in values] + [row[0] for row in values], abs=0.011), (
        "run: python docs/site/front.py"
    )
    assert front.PICTURE.stat().st_size < 150_000
