"""README and docs: every code block runs, every option of every command is described, what is named exists.

Blocks are found, not listed: a new block that does not run fails here. Python blocks of a file share their names and
start from those of `NAMES`; of shell blocks the ``layerbounds`` commands run, on small inputs and with a short time
limit. Blocks marked ``text`` show output. A Python block that begins with ``# NAME.py`` is that file for the shell
blocks of its page, which may run it. The commands of some pages (`CHAINS`) follow one another, so that they run as one.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import runpy
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from made_checkpoints import Toy, stored, stored_gguf

import layerbounds as lb
from layerbounds.cli.main import app, main

PROJECT = Path(__file__).resolve().parent.parent
DOCS = PROJECT / "docs"
FILES = [PROJECT / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What sets an environment up or runs the tests is not run by a test.
SETUP = ("python -m venv ", ". .venv/bin/activate", "pip install ", "python -m pytest")
#: A block that is a file.
SCRIPT = re.compile(r"# (\w+\.py)\n")
#: Pages, or folders of them, whose shell blocks follow one another.
CHAINS = ("llm.md", "tutorial.md", "how-to/")
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def page(path: Path) -> str:
    """The name of a file within the documents, such as ``how-to/score-a-checkpoint.md``."""
    return path.relative_to(DOCS).as_posix() if path.is_relative_to(DOCS) else path.name


def blocks(path: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(path.read_text(encoding="utf-8")) if kind == language]


def commands(text: str) -> list[str]:
    """The commands of a shell block, one a line."""
    lines = text.replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


def small_layers() -> dict[str, lb.Layer]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 8)) + rng.normal(size=(40, 1))
    conv3 = lb.Layer.from_activations(rng.normal(size=(3, 8)), x, "conv3")
    return {"conv3": conv3, "conv2": lb.Layer.from_activations(rng.normal(size=(8, 5)), x[:, :5], "conv2")}


def readme_names() -> dict[str, Any]:
    layer, step = small_layers()["conv3"], np.array([0.5, 0.4, 0.6])
    rng = np.random.default_rng(1)
    rounded = step[:, None] * np.clip(np.rint(layer.matrix / step[:, None]), -4, 3)
    return {"W": layer.weight, "X": rng.normal(size=(50, 8)), "s": step, "V": rounded}


def model_names() -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    body = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.ReLU())
    model = torch.nn.Sequential()
    model.add_module("layer1", body)
    model.add_module("head", torch.nn.Linear(5, 3))
    generator = torch.Generator().manual_seed(0)
    make_onnx(Path())
    return {"lb": lb, "model": model.eval(), "batches": [torch.randn(16, 6, generator=generator)]}


def training_names() -> dict[str, Any]:
    torch = importlib.import_module("torch")
    names = model_names()
    return {**names, "x": torch.cat(names["batches"]), "y": torch.arange(16) % 3}


def problem_names() -> dict[str, Any]:
    layer = small_layers()["conv3"]
    return {"lb": lb, "layer": layer, "problem": lb.quantization_problem(layer, bits=3)}


def make_checkpoints() -> dict[str, Any]:
    """A dense model, its capture, and quantized forms of it, in the current folder."""
    toy, here = Toy(), Path()
    toy.save(here / "Llama")
    lb.save_layers("capture.safetensors", toy.layers())
    stored(here / "Llama-GPTQ", toy)
    stored(here / "Llama-W4A16", toy, form="compressed-tensors")
    return {"lb": lb, "toy": toy}


def run_names() -> dict[str, Any]:
    lb.run(small_layers(), out="run", bits=[2, 3, 4], granularity="tensor", methods=[], time_limit=0.0, jobs=1)
    return {"lb": lb}


def gguf_names() -> dict[str, Any]:
    from gguf_files import gguf, random_blocks, write_file

    rng = np.random.default_rng(0)
    values = rng.normal(size=(8, 64)).astype(np.float32)
    up = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_0)
    tensors = {"blk.0.ffn_up.weight": (up, "Q4_0"), "blk.0.ffn_down.weight": (random_blocks(rng, "Q6_K", 4, 1), "Q6_K")}
    write_file(Path("model.gguf"), tensors)
    return {"lb": lb, "np": np}


#: What the Python blocks of a file find already defined.
NAMES: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": readme_names,
    "allocation.md": run_names,
    "capture.md": model_names,
    "certificates.md": problem_names,
    "compare.md": problem_names,
    "compress.md": lambda: llama_names(),
    "heuristics.md": problem_names,
    "gguf.md": gguf_names,
    "how-to/capture-transformers.md": lambda: llama_names(),
    "how-to/score-a-checkpoint.md": make_checkpoints,
    "grids.md": problem_names,
    "joint.md": problem_names,
    "patterns.md": problem_names,
    "report.md": run_names,
    "score.md": make_checkpoints,
    "training.md": training_names,
    "tutorial.md": lambda: {"__name__": "digits"},
}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the documents name, and a small demo network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lb, "demo_layers", small_layers)
    monkeypatch.setattr("layerbounds.cli.options.demo_layers", small_layers)
    lb.save_layers("capture.safetensors", small_layers())
    return tmp_path


@pytest.mark.parametrize("path", FILES, ids=page)
def test_blocks_are_of_known_kinds(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    fences = re.findall(r"^\s*```", text, re.MULTILINE)
    assert len(fences) == 2 * len(BLOCK.findall(text)), "a fence is indented or not closed"
    for kind, content in BLOCK.findall(text):
        assert kind in ("python", "sh", "text")
        if kind == "text":
            assert not re.search(r"^\s*(\$|>>>|layerbounds [a-z]+ |import |pip )", content, re.MULTILINE)


@pytest.mark.parametrize("path", [f for f in FILES if blocks(f, "python")], ids=page)
def test_python_blocks_run(path: Path, workplace: Path) -> None:
    names = NAMES.get(page(path), dict)()
    for text in blocks(path, "python"):
        if importlib.util.find_spec("pandas") is None:
            text = re.sub(r"^.*\bpandas\b.*$", "", text, flags=re.MULTILINE)
        exec(compile(text, str(path), "exec"), names)


def test_calls_within_the_text_of_the_readme_run(workplace: Path) -> None:
    names = readme_names()
    for text in blocks(PROJECT / "README.md", "python"):
        exec(text, names)
    calls = re.findall(r"`(lb\.\w+\([^`]*\))`", (PROJECT / "README.md").read_text(encoding="utf-8"))
    assert calls
    for call in calls:
        # The methods that take a second each are not what is tested.
        rows = eval(call.replace("lb.compare(", 'lb.compare(methods=["rtn"], jobs=1, layer='), names)
        given = [row for row in rows if row["kind"] == "given"]
        assert [row["feasible"] for row in given] == [True]


def shell_of(path: Path) -> list[str]:
    """What runs as one: a block, or all blocks of a page on which one goes on from the other."""
    found = blocks(path, "sh")
    return ["".join(found)] if found and page(path).startswith(CHAINS) else found


SHELL = [
    pytest.param(path, text, id=f"{page(path)}-{number}", marks=[pytest.mark.slow] if "resnet20" in text else [])
    for path in FILES
    for number, text in enumerate(shell_of(path))
]


@pytest.mark.parametrize(("path", "text"), SHELL)
def test_shell_blocks_run(
    path: Path, text: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "resnet20" in text:
        make_network(workplace)
    if "--model llama" in text:
        make_llama(workplace)
    if "--model t5" in text:
        make_t5(workplace)
    if "--model model.onnx" in text:
        make_onnx(workplace)
    for script in blocks(path, "python"):
        if name := SCRIPT.match(script):
            (workplace / name[1]).write_text(script, encoding="utf-8")
    if "Llama-GPTQ" in text:
        stored_gguf(workplace / "Llama-Q4_0.gguf", make_checkpoints()["toy"])
    for command in commands(text):
        if command.startswith(SETUP):
            continue
        words = shlex.split(command)
        if words[0] == "python" and Path(words[1]).exists():
            runpy.run_path(words[1], run_name="__main__")
            continue
        assert words[0] == "layerbounds", f"not run by this test: {command}"
        if words[1] == "--version":
            assert main(words[1:]) == 0
            continue
        options = {opt for p in COMMANDS[words[1]].params for opt in p.opts}
        # Scales of small layers take more bits than their weights.
        quick = {"--time-limit": "0.05", "--jobs": "1", "--methods": "rtn,magnitude", "--channels-sample": "1"}
        quick["--budget"] = "9"
        if words[1] == "compress":
            quick["--time-limit"] = "0"
        if words[1] == "score":
            # Seconds for each layer.
            quick |= {"--total-time": "0.05", "--channels": "0:2"}
        if "--refine" in words:
            quick["--refine"] = "0.1"
        if "--channels-sample" in words:
            quick |= {} if "--contenders" in words else {"--bits": "4"}
        else:
            del quick["--channels-sample"]
        if "--methods" in words and page(path).startswith(CHAINS):
            del quick["--methods"]
        elif "--joint" in words:
            quick["--methods"] = "obc,sparsegpt_joint"
        for option, value in quick.items():
            if option in words:
                words[words.index(option) + 1] = value
            elif option in options:
                words += [option, value]
        assert main(words[1:]) == 0, capsys.readouterr().err
        for option in ("--out", "--plot", "--table", "--json"):
            if option in words:
                assert Path(words[words.index(option) + 1]).exists()


def make_t5(folder: Path) -> None:
    """A tiny model with an encoder and a decoder, and text for both."""
    transformers = pytest.importorskip("transformers")
    from test_capture_transformers import write_tokenizer

    config = transformers.T5Config(
        vocab_size=16, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder / "t5-directory")
    write_tokenizer(folder / "t5-directory", pad_token="[PAD]")
    for name in ("german", "english"):
        (folder / f"{name}.txt").write_text("the layer sees a token\na bound\n")


def make_network(folder: Path) -> None:
    """The network with a quarter of its channels, random weights, and images in place of the trained network's."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    (folder / "examples").mkdir()
    (folder / "docs" / "figures").mkdir(parents=True)
    text = (PROJECT / "examples" / "resnet20.py").read_text(encoding="utf-8")
    text = re.sub(r"\b(16|32|64)\b", lambda channels: str(int(channels[0]) // 4), text)
    (folder / "examples" / "resnet20.py").write_text(text, encoding="utf-8")
    code: dict[str, Any] = {"__name__": "resnet20"}
    exec(text, code)
    torch.manual_seed(0)
    state = {name: value.contiguous() for name, value in code["resnet20"]().state_dict().items()}
    assert state["layer3.2.conv2.weight"].shape == (16, 16, 3, 3)
    images = np.random.default_rng(0).integers(0, 256, size=(4, 3, 32, 32), dtype=np.uint8)
    for name in ("resnet20.safetensors", "resnet20_cifar10.safetensors"):
        save_file(state, folder / name)
    for name in ("images.npz", "cifar10_subset.npz"):
        np.savez(folder / name, calib_images=images, calib_labels=np.arange(4))


def make_onnx(folder: Path) -> None:
    """An ONNX model of two layers, and samples for it."""
    from onnx_models import model, node, onnx, value

    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(6, 6)).astype(np.float32) for name in ("layer1.0.weight", "head.weight")}
    nodes = [node("MatMul", ["x", "layer1.0.weight"], "h"), node("MatMul", ["h", "head.weight"], "y")]
    onnx.save(model(nodes, [value("x", None)], "y", weights), folder / "model.onnx")
    np.savez(folder / "images.npz", x=rng.integers(0, 256, size=(16, 6), dtype=np.uint8))


def make_llama(folder: Path) -> Any:
    """A tiny Llama as a directory and as a GGUF file, and token ids."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder / "llama")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[UNK]", "it", "is", "of", "the", "and", "a", "word", "in", "text"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(
        folder / "llama"
    )
    (folder / "text.txt").write_text("a word of the text and a word in it\n" * 8, encoding="utf-8")
    writer = gguf.GGUFWriter(folder / "llama.gguf", "llama")
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, value in model.state_dict().items():
        matrix = value.numpy()
        if "q_proj" in name or "k_proj" in name:
            matrix = matrix.reshape(2, 16, 32).swapaxes(0, 1).reshape(32, 32)
        writer.add_tensor(names.get_name(name, (".weight",)), matrix.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, 32, size=(8, 16)))
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "llama", dtype="auto")


def llama_names() -> dict[str, Any]:
    model = make_llama(Path())
    torch = importlib.import_module("torch")
    return {"lb": lb, "model": model, "batches": [{"input_ids": torch.from_numpy(np.load("tokens.npy"))}]}


def described(command: str) -> str:
    """What the documents say about a command."""
    text = (PROJECT / "docs" / "cli.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    own = [part for part in sections if f"`layerbounds {command}`" in part.partition("\n")[0]]
    assert len(own) == 1, f"docs/cli.md has no section of its own about {command}"
    if command == "compare":
        own.append((PROJECT / "docs" / "compare.md").read_text(encoding="utf-8"))
    return "\n".join(own)


def options_of(command: str) -> set[str]:
    every = {opt for p in COMMANDS[command].params for opt in [*p.opts, *p.secondary_opts] if opt.startswith("--")}
    return every - {"--help"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_described(command: str) -> None:
    named = set(re.findall(r"--[a-z][a-z-]*", described(command)))
    assert options_of(command) - named == set()


def test_every_option_described_exists() -> None:
    every = set().union(*(options_of(command) for command in COMMANDS)) | {"--help", "--version"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", "\n".join(described(command) for command in COMMANDS)))
    assert named - every == set()
    solving = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", described("solve").partition("### ")[0]))
    assert solving - {"--help"} == options_of("solve")


# --- names ---------------------------------------------------------------------------------------------------------

NAMED = [*FILES, PROJECT / "CONTRIBUTING.md"]
#: What is written for a name that the reader chooses: DIR, NAME, FAMILY.
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b")
#: Environment variables and values of theirs, and options of other tools.
ELSEWHERE = {"NO_COLOR", "SandyBridge", "SkylakeX", "Zen", "allow_permutation", "l1_unstructured", "round_to"}
#: Keys of the metadata of files, which look like dotted names.
METADATA = {f"layerbounds.{key}" for key in ("schema", "allowed", "fingerprint", "compressed", "problem")}


def spoken(text: str) -> set[str]:
    """What stands between backticks, outside blocks."""
    return set(re.findall(r"`([^`\n]+)`", BLOCK.sub("", text)))


def sources() -> list[Path]:
    folders = ("layerbounds", "layerbounds_verify", "benchmarks", "tests", "examples")
    return [path for folder in folders for path in (PROJECT / folder).rglob("*.py")]


@cache
def words_of_sources() -> set[str]:
    files = [*sources(), PROJECT / "pyproject.toml"]
    return set(re.findall(r"\w+", "\n".join(path.read_text(encoding="utf-8") for path in files)))


def resolve(name: str) -> None:
    """Import what a dotted name of the package or of the benchmarks denotes."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if error.name is None or not f"{'.'.join(parts[:end])}.".startswith(f"{error.name}."):
                pytest.skip(f"{error.name} is not installed")
            continue
        for part in parts[end:]:
            # Fields of a dataclass without a default are no attributes of it.
            found = None if part in getattr(found, "__dataclass_fields__", {}) else getattr(found, part)
        return
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("path", NAMED, ids=page)
def test_links_lead_somewhere(path: Path) -> None:
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text):
        file = path.parent / target if target else path
        assert file.exists(), f"{page(path)} links to {target}"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            known = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in known, f"{page(path)} links to #{anchor} of {file.name}"


@pytest.mark.parametrize("path", NAMED, ids=page)
def test_paths_exist(path: Path) -> None:
    places = (PROJECT, PROJECT / "layerbounds", PROJECT / "docs")
    files = {source.name for source in sources()}
    files |= {name[1] for script in blocks(path, "python") if (name := SCRIPT.match(script))}
    for name in spoken(path.read_text(encoding="utf-8")):
        if PLACEHOLDER.search(name) or name.endswith("__pycache__") or name.startswith("../"):
            continue
        if re.fullmatch(r"[\w.-]+(/[\w.*-]+)+/?|[\w.-]+\.md", name):
            assert any(list(place.glob(name.rstrip("/"))) for place in places), f"{page(path)} names {name}"
        elif re.fullmatch(r"[\w.]+\.py", name):
            assert name in files, f"{page(path)} names {name}"


@pytest.mark.parametrize("path", NAMED, ids=page)
def test_names_exist(path: Path) -> None:
    known = words_of_sources() | ELSEWHERE
    for name in spoken(path.read_text(encoding="utf-8")):
        call = re.fullmatch(r"([A-Za-z_][\w.]*)(?:\((.*)\))?", name)
        if call is None or PLACEHOLDER.fullmatch(name) or name.endswith(".py"):
            continue
        dotted = call[1]
        assert set(dotted.split(".")) - {""} <= known, f"{page(path)} names {name}"
        if re.match(r"(layerbounds|lb|benchmarks)\.", dotted) and dotted not in METADATA:
            resolve(re.sub(r"^lb\.", "layerbounds.", dotted))
        function = getattr(lb, dotted.removeprefix("lb."), None)
        if call[2] and callable(function):
            accepted = inspect.signature(function).parameters
            written = ast.parse(name.replace("…", "*rest"), mode="eval").body
            assert isinstance(written, ast.Call)
            if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
                assert {keyword.arg for keyword in written.keywords} <= set(accepted), f"{page(path)} calls {name}"


def test_docstrings_name_what_exists() -> None:
    """Dotted names of the package, and the functions and classes that docstrings put between backticks."""
    pytest.importorskip("torch", reason="all modules are imported")
    known = words_of_sources()
    for file in sorted((PROJECT / "layerbounds").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                continue
            text = re.sub(r"``.*?``", "", ast.get_docstring(node) or "", flags=re.DOTALL)
            for name in re.findall(r"`([A-Za-z_][\w.]*)`", text):
                assert set(name.split(".")) <= known, f"{file.name} names {name}"
                if name.startswith("layerbounds."):
                    resolve(name)
