"""Results show themselves: in a few words, as HTML, as tables and as pictures."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_checkpoints import checkpoint, quantized

import layerbounds as lb
from layerbounds.display import Bar, Displayed, Summary, Table, picture
from layerbounds.display.html import MOST_ROWS, rendered
from layerbounds.exceptions import InputError

#: A name that is markup where it is not escaped.
NAME = "a<b>&\"c'"


def small(name: str = NAME, out: int = 3) -> lb.Layer:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 6)) + rng.normal(size=(60, 1))
    return lb.Layer.from_activations(rng.normal(size=(out, 6)), x, name)


class Reader(HTMLParser):
    """Takes HTML apart: the tags, the text, the rows of tables, and attributes of one kind."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.hints: list[str] = []
        self.styles: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        given = dict(attrs)
        assert set(given) <= {"style", "title"}, given
        self.styles += [given["style"] or ""] if "style" in given else []
        self.hints += [given["title"] or ""] if "title" in given else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.rows and self.rows[-1] and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One of every kind that shows itself."""
    layer = small()
    problem = lb.quantization_problem(layer, 3)
    solution = lb.solve(problem, jobs=1)
    folder = tmp_path_factory.mktemp("run")
    run = lb.run(
        {NAME: layer}, bits=[2, 3], pattern="2:4", out=folder / "run", time_limit=1, parallel="threads", jobs=1
    )
    stored = {NAME: quantized(NAME, problem.grid, problem.grid.nearest(layer.matrix))}
    scores = lb.score(checkpoint(stored), {NAME: layer}, jobs=1)
    versus = lb.versus(layer, bits=[2], time_limit=1, jobs=1)
    standings = lb.contest(layer, [4, "2:4"], time_limit=1, jobs=1)
    gap = lb.order_gap(layer, bits=2, density=0.5, time_limit=1, jobs=1)
    return {
        "layer": layer,
        "quantization": problem,
        "pruning": lb.pruning_problem(layer, pattern="2:4"),
        "joint": lb.joint_problem(layer, bits=2, density=0.5),
        "free scales": lb.quantization_problem(layer, 2, scale="free"),
        "grid": problem.grid,
        "solution": solution,
        "comparison": lb.compare(layer, [2, 3], pattern="2:4", methods=["rtn", "gptq", "magnitude"], jobs=1),
        "versus": versus,
        "level": versus.levels[0],
        "standings": standings,
        "entrant": standings.entrants[0],
        "run": run,
        "entry": run.entries[0],
        "allocation": lb.allocate(run, 6.0),
        "scores": scores,
        "score": scores[NAME],
        "standing": scores[NAME].own,
        "gap": gap,
        "stage": next(iter(gap.stages.values()))[0],
        "evaluation": lb.evaluate(problem, solution.weights),
        "checkpoint": checkpoint(stored),
        "quantized weight": stored[NAME],
    }


KINDS = [
    "layer", "quantization", "pruning", "joint", "free scales", "grid", "solution", "comparison", "versus", "level",
    "standings", "entrant", "run", "entry", "allocation", "scores", "score", "standing", "gap", "stage", "evaluation",
    "checkpoint", "quantized weight",
]  # fmt: skip


def test_all_kinds_are_here(results: dict[str, Any]) -> None:
    assert list(results) == KINDS
    public = [value for name in lb.__all__ if isinstance(value := getattr(lb, name), type)]
    shown = {kind for kind in public if issubclass(kind, Displayed)}
    assert shown <= {type(result) for result in results.values()} | {lb.FreeCodebookProblem, lb.FilterProblem}
    # What remains is enumerations and errors, and the report of the checker, which shares nothing with the package.
    plain = {kind.__name__ for kind in public if not issubclass(kind, (Displayed, Exception, str))}
    assert plain == {"Report"}


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_few(results: dict[str, Any], kind: str) -> None:
    result = results[kind]
    text = repr(result)
    assert type(result).__name__ in text
    assert len(text.splitlines()) <= 9 and len(text) < 1200
    assert "array(" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_html_is_whole_and_escaped(results: dict[str, Any], kind: str) -> None:
    html = results[kind]._repr_html_()
    page = Reader(html)
    assert page.open == [] and page.tags[0] == "div"
    # A name that is not escaped would be a tag of its own.
    assert "b" not in page.tags and set(page.tags) <= {
        "div",
        "strong",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "span",
    }
    assert type(results[kind]).__name__ in "".join(page.texts)
    assert len({len(row) for row in page.rows}) <= 1
    # Text takes the colour of the page; what has a colour of its own is a bar.
    assert not any("color:#" in style.replace("background-color:", "") for style in page.styles)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in ("grid", "entrant", "stage", "standing", "level")]
)
def test_names_are_shown(results: dict[str, Any], kind: str) -> None:
    if kind not in ("evaluation", "versus", "run"):
        assert NAME in "".join(Reader(results[kind]._repr_html_()).texts)


def test_nothing_but_words() -> None:
    class Thing(Displayed):
        def _summary(self) -> Summary:
            return Summary("x<y", ["one & two"])

    assert repr(Thing()) == "<Thing: x<y · one & two>"
    page = Reader(Thing()._repr_html_())
    assert "".join(page.texts) == "Thing x<yone & two" and page.rows == []


def test_facts_that_tables_say_are_in_words_only() -> None:
    class Thing(Displayed):
        def _summary(self) -> Summary:
            return Summary("title", ["said twice"], in_tables=True)

        def _tables(self) -> list[Table]:
            return [Table({"": "text", " ": "text"}, [["said", "twice"]])]

    page = Reader(Thing()._repr_html_())
    assert "said twice" in repr(Thing()) and "said twice" not in page.texts
    # Headings that are all blank are no row.
    assert page.rows == [["said", "twice"]]


def test_long_words_are_broken_into_lines() -> None:
    long = Summary("title", ["a" * 60, "b" * 60]).text("Kind").splitlines()
    assert long == ["<Kind: title", "  " + "a" * 60, "  " + "b" * 60 + ">"]


def test_bars_are_where_their_ends_are() -> None:
    rows = [["one", Bar(1.0, 10.0, "1 to 10")], ["two", Bar(10.0, 100.0, "10 to 100")], ["three", None]]
    table = Table({"name": "text", "bar": "bar"}, rows)
    low, high = table.axis() or (0.0, 0.0)
    assert low < 1.0 < 100.0 < high
    styles = [s for s in Reader(rendered("Kind", Summary("x"), [table])).styles if "margin-left" in s]
    found = [dict(part.split(":") for part in style.split(";")) for style in styles]
    places = [(float(f["margin-left"][:-1]), float(f["width"][:-1])) for f in found]
    for (left, width), bar in zip(places, [rows[0][1], rows[1][1]], strict=True):
        assert isinstance(bar, Bar)
        share = [100 * np.log(end / low) / np.log(high / low) for end in (bar.low, bar.high)]
        assert left == pytest.approx(share[0], abs=0.01) and left + width == pytest.approx(share[1], abs=0.02)


@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, np.inf), (0.0, np.inf), (1.0, 1.0), (1e-300, 1e300)])
def test_ends_of_all_sizes_are_drawn(span: tuple[float, float]) -> None:
    table = Table({"": "bar", "other": "bar"}, [[Bar(*span, "hint"), Bar(0.5, 2.0, "hint")]])
    for style in Reader(rendered("Kind", Summary("x"), [table])).styles:
        if "margin-left" in style:
            left, width = (float(part.split(":")[1][:-1]) for part in style.split(";")[:2])
            assert left >= 0.0 and width > 0.0 and left + width <= 100.01


def test_no_positive_number_is_no_axis() -> None:
    table = Table({"": "bar"}, [[Bar(0.0, np.inf, "hint")]])
    assert table.axis() is None
    assert Reader(rendered("Kind", Summary("x"), [table])).hints == []


def test_long_tables_are_cut_and_say_so() -> None:
    table = Table({"name": "text"}, [[str(i)] for i in range(MOST_ROWS + 7)])
    page = Reader(rendered("Kind", Summary("x"), [table]))
    assert len(page.rows) == 1 + MOST_ROWS and "7 more rows" in page.texts


def test_html_of_a_solution_has_its_numbers(results: dict[str, Any]) -> None:
    solution = results["solution"]
    page = Reader(solution._repr_html_())
    assert [row[0] for row in page.rows[1:]] == ["0", "1", "2"]
    for row, upper in zip(page.rows[1:], solution.relative_upper_bound, strict=True):
        assert float(row[1].split()[-1]) == pytest.approx(100 * upper, rel=1e-3)
        assert row[-1] == "optimal"
    assert len(page.hints) == 3


def test_comparison_is_a_list_of_dicts(results: dict[str, Any]) -> None:
    comparison = results["comparison"]
    assert isinstance(comparison, list) and isinstance(comparison[0], dict)
    assert comparison[0]["method"] == "certified interval" and len(comparison) == len(comparison.records)
    assert len(repr(comparison).splitlines()) == 4


# --- tables --------------------------------------------------------------------------------------------------------

FRAMES = ["solution", "comparison", "versus", "standings", "run", "allocation", "scores", "gap", "evaluation"]


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_have_types(results: dict[str, Any], kind: str) -> None:
    table = results[kind].to_frame()
    assert len(table) and {str(dtype) for dtype in table.dtypes} <= {"string", "Int64", "float64", "boolean"}
    assert not table.columns.duplicated().any()


def test_frame_of_a_comparison(results: dict[str, Any]) -> None:
    comparison = results["comparison"]
    table = comparison.to_frame()
    assert list(table.columns) == list(comparison[0])
    for row, (_, shown) in zip(comparison, table.iterrows(), strict=True):
        assert shown["method"] == row["method"] and shown["error"] == row["error"]
        assert shown["channels"] == 3 and shown["feasible"] == row["feasible"]


def test_frame_of_versus(results: dict[str, Any]) -> None:
    versus = results["versus"]
    table, channels = versus.to_frame(), versus.to_frame(channels=True)
    (level,) = versus.levels
    assert table["quantization_lower_bound"][0] == level.totals[0][0]
    assert table["pruning_upper_bound"][0] == level.totals[1][1] and table["channels"][0] == "0:3"
    assert channels["quantization_lower_bound"].tolist() == level.quantization[:, 0].tolist()
    assert channels["verdict"].tolist() == [str(verdict) for verdict in level.verdicts]
    with pytest.raises(InputError, match="channels"):
        versus.to_frame(channels="yes")


def test_frame_of_standings(results: dict[str, Any]) -> None:
    standings = results["standings"]
    table, channels = standings.to_frame(), standings.to_frame(channels=True)
    for i, entrant in enumerate(standings.entrants):
        assert (table["lower_bound"][i], table["upper_bound"][i]) == entrant.total
        own = channels[channels["contender"] == entrant.name]
        assert own["upper_bound"].tolist() == entrant.bounds[:, 1].tolist()


def test_frame_of_an_allocation(results: dict[str, Any]) -> None:
    allocation = results["allocation"]
    (row,) = allocation.to_frame().to_dict("records")
    option = allocation.option(NAME)
    assert (row["layer"], row["option"], row["storage_bits"]) == (NAME, option.name, option.storage)
    assert (row["lower_bound"], row["upper_bound"]) == allocation.interval(NAME)


def test_frame_of_orders(results: dict[str, Any]) -> None:
    gap = results["gap"]
    table = gap.to_frame()
    for name, ratio in gap.ratio.items():
        own = table[table["order"] == name]
        assert own["at_most_ratio"].tolist() == ratio[:, 1].tolist() and own["channel"].tolist() == gap.channels
        assert own["settled"].tolist() == gap.settled[name].tolist()
    joint = table[table["order"] == "joint"]
    assert joint["upper_bound"].tolist() == gap.joint[:, 1].tolist() and joint["settled"].isna().all()


def test_frame_of_an_evaluation(results: dict[str, Any]) -> None:
    evaluation = results["evaluation"]
    table = evaluation.to_frame()
    assert table["channels"].tolist() == ["0", "1", "2"] and table["error"].tolist() == evaluation.error.tolist()
    assert table["feasible"].all()


# --- pictures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["solution", "comparison", "versus", "standings", "run", "scores", "gap"])
def test_pictures_are_figures_and_files(results: dict[str, Any], kind: str, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    assert isinstance(results[kind].plot(), Figure)
    figure = results[kind].plot(tmp_path / "picture.svg")
    assert isinstance(figure, Figure) and figure.axes
    assert (tmp_path / "picture.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")
    with pytest.raises(InputError, match=r"\.svg"):
        results[kind].plot(tmp_path / "picture.docx")


def test_picture_of_a_solution_has_the_intervals(results: dict[str, Any]) -> None:
    solution = results["solution"]
    (axes,) = solution.plot().axes
    segments = np.concatenate([lines.get_segments() for lines in axes.collections])
    assert segments[:, 0, 0].tolist() == [0.0, 1.0, 2.0]
    np.testing.assert_allclose(segments[:, 0, 1], 100 * solution.relative_lower_bound)
    np.testing.assert_allclose(segments[:, 1, 1], 100 * solution.relative_upper_bound)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1", "2"]


def test_ends_at_zero_leave_the_picture() -> None:
    problem = lb.quantization_problem(small(), 2)
    solution = lb.solve(problem, jobs=1)
    open_below = type(solution)(**{**vars(solution), "lower_bound": np.zeros(3)})
    (axes,) = open_below.plot().axes
    segments = np.concatenate([lines.get_segments() for lines in axes.collections])
    assert np.all(segments[:, 0, 1] == axes.get_ylim()[0]) and axes.get_ylim()[0] > 0


def test_picture_of_a_run_has_the_intervals(results: dict[str, Any]) -> None:
    run = results["run"]
    (axes,) = run.plot().axes
    drawn = [(bar.get_x(), bar.get_x() + bar.get_width()) for bars in axes.containers for bar in bars]
    wanted = [e.interval for e in run.entries]
    energy = run.layers[0].energy
    np.testing.assert_allclose(drawn, 100 * np.array(wanted) / energy, rtol=1e-9)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [NAME]


def test_trace_has_a_picture_of_its_own(results: dict[str, Any], tmp_path: Path) -> None:
    (axes,) = results["solution"].plot(kind="trace").axes
    assert axes.get_xlabel() == "seconds of search"
    with pytest.raises(InputError, match="kind"):
        results["solution"].plot(kind="pie")


def test_what_cannot_be_drawn_says_so() -> None:
    with pytest.raises(InputError, match="no picture of a Grid"):
        picture(lb.uniform_grid(np.ones((1, 2)), 2))
    nothing = lb.Layer(np.zeros((1, 2)), np.eye(2))
    solution = lb.solve(lb.quantization_problem(nothing, grid=lb.Grid([0.0, 1.0], [1.0], 0.0, 2)), jobs=1)
    with pytest.raises(InputError, match="no channel has any energy"):
        solution.plot()
    assert "Solution" in repr(solution) and Reader(solution._repr_html_()).rows[1][1] == "–"


def test_importing_is_light() -> None:
    code = (
        "import sys, layerbounds; print([m for m in ('torch', 'pandas', 'matplotlib', 'IPython') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def test_captured_layers_show_themselves() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    layers = lb.capture(model, [torch.randn(40, 3)])
    assert repr(layers) == "<CapturedLayers: 2 layers: 0, 1>" and list(layers) == ["0", "1"]
    assert Reader(layers._repr_html_()).rows[1][:3] == ["0", "4x3", "3"]
    table = layers.to_frame()
    assert table["samples"].tolist() == [40, 40] and table["inputs"].tolist() == [3, 4]
    assert "2 layers captured" in repr(layers.report) and "1 batch" in repr(layers.report)
    assert "2 layers captured" in "".join(Reader(layers.report._repr_html_()).texts)
