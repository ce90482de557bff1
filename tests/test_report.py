"""Reports of runs: what the page says, that it is one file and nothing else, and tables that agree with it."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections import Counter
from fractions import Fraction
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import CHOICES, NAMES, made_run

import layerbounds as lb
from layerbounds.allocation import FrontPoint
from layerbounds.cli.main import main
from layerbounds.contests.contenders import Spec, parse_contender
from layerbounds.contests.verdict import Verdict
from layerbounds.display.outward import ends, rounded
from layerbounds.exceptions import InputError, MissingExtraError
from layerbounds.network.allocate import allocation_front
from layerbounds.network.entries import Entry
from layerbounds.network.table import COLUMNS, relative, rows, state, weighted_sum
from layerbounds.report.charts import log_axis, short
from layerbounds.report.network import missing_parts
from layerbounds.report.network_command import command, contender
from layerbounds.report.network_front import _stepwise, front_chart
from layerbounds.report.network_page import page
from layerbounds.report.network_totals import coverage, pairs, totals

#: Elements that have no end tag.
VOID = {"meta", "link", "input", "br", "img", "hr"}


class Reader(HTMLParser):
    """Elements with their attributes and texts; raises where tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.cells: list[list[str]] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.texts.append(data)
            if {"td", "th"} & set(self._open):
                self.cells[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader._open
    return reader


@pytest.fixture
def run(tmp_path: Path) -> lb.NetworkRun:
    return made_run(tmp_path)


def test_page_is_one_file_that_loads_nothing(run: lb.NetworkRun) -> None:
    text = page(run)
    reader = read(text)
    for tag, attributes in reader.elements:
        for name in ("src", "href", "action", "xlink:href", "data", "poster", "style"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
        assert not any(name.startswith("on") for name in attributes), tag
    styles = re.search(r"<style>(.*?)</style>", text, re.S)
    assert styles is not None and not re.search(r"url\(|@import|@font-face", styles[1])
    policy = next(a["content"] for t, a in reader.elements if t == "meta" and a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert "http://" not in text and "https://" not in text


def test_names_are_texts_whatever_they_are(run: lb.NetworkRun) -> None:
    text = page(run)
    reader = read(text)
    tags = Counter(tag for tag, _ in reader.elements)
    # Only what the template has: nothing of a name, a label, a reason or a path has become an element.
    assert tags["script"] == 1 and tags["i"] == 0 and tags["b"] == 0
    assert tags["em"] == 1
    body = [row for row in reader.cells if row and row[0] in NAMES]
    assert {row[0] for row in body} == set(NAMES)
    for said in ("</script><i>theirs", "cannot be pruned <em>so</em>", "b>.safetensors"):
        assert said in reader.text


def test_page_is_accessible(run: lb.NetworkRun) -> None:
    reader = read(page(run))
    elements = reader.elements
    assert ("html", {"lang": "en"}) in elements
    assert all(attributes.get("scope") for tag, attributes in elements if tag == "th")
    tags = Counter(tag for tag, _ in elements)
    assert tags["caption"] == tags["table"] == 4 and tags["h1"] == 1
    levels = [int(tag[1]) for tag, _ in elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in elements:
        for name in ("for", "aria-labelledby"):
            assert name not in attributes or attributes[name] in ids
        if tag in ("a", "use"):
            assert str(attributes["href"])[1:] in ids
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true"
    alts = [str(attributes["aria-label"]) for _, attributes in elements if attributes.get("role") == "img"]
    # Intervals, methods at three compressions, one pair at equal bits, the front.
    assert len(alts) == 6 and all(re.search(r"\d", alt) and alt.endswith(".") for alt in alts)
    assert "INT2 from" in alts[0] and re.search(r"gptq from \d\.\d+ to \d", alts[1])
    assert "quantization is better in 1 of 1 layer" in alts[-2] and " at 4 bits" in alts[-1]


def test_same_run_same_bytes(run: lb.NetworkRun, tmp_path: Path) -> None:
    written = lb.write_report(run, tmp_path / "one")
    again = lb.write_report(made_run(tmp_path), tmp_path / "two")
    assert [path.name for path in written] == ["report.html", "report.csv", "report.parquet"]
    for one, two in zip(written, again, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert written[0].stat().st_size < 100_000


def test_a_network_fits_into_a_page(tmp_path: Path) -> None:
    run = made_run(tmp_path, [f"layer{i // 2}.conv{i % 2}" for i in range(20)], [*CHOICES, *_more_choices()])
    assert len(page(run)) < 400_000


def _more_choices() -> list[Any]:
    return [type(CHOICES[0])(f"INT{b}", {**CHOICES[0].spec, "bits": b}, CHOICES[0].rules) for b in (3, 5)]


def test_tables_agree(run: lb.NetworkRun, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    lb.write_report(run, tmp_path)
    frame = run.to_frame()
    with (tmp_path / "report.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert list(frame.columns) == list(found[0]) and len(frame) == len(found) == 9
    pandas.testing.assert_frame_equal(frame, pandas.read_parquet(tmp_path / "report.parquet"))
    for entry, line, (_, row) in zip(run.entries, found, frame.iterrows(), strict=True):
        assert (line["layer"], line["compression"]) == (entry.layer.name, entry.choice.name)
        if entry.refused is not None:
            assert line["refused"] == entry.refused and line["lower_bound"] == "" and row.isna()["lower_bound"]
            continue
        assert (float(line["lower_bound"]), float(line["upper_bound"])) == entry.interval
        assert row["fingerprint"] == line["fingerprint"] == entry.fingerprint
        assert int(line["storage_bits"]) == row["storage_bits"] == entry.storage
        span = relative(entry)
        assert span is not None and float(line["relative_upper_bound"]) == span[1] == row["relative_upper_bound"]
        assert row["sqnr_db"] == pytest.approx(-10 * math.log10(span[1])) or math.isinf(span[1])
        assert row["error[gptq]"] == pytest.approx(1.5 * entry.upper.sum() / entry.layer.energy) or not (
            "gptq" in entry.methods and entry.visited
        )
    cells = {(row[0], row[1]): row for row in read(page(run)).cells if len(row) == 15}
    for entry in run.entries:
        row = cells[entry.layer.name, entry.choice.name]
        assert row[2] == state(entry)
        if entry.refused is None and entry.visited:
            low, high = (Fraction(row[i]) / 100 for i in (4, 5))
            lower, upper = map(Fraction, entry.interval)
            energy = Fraction(entry.layer.energy)
            # What is printed holds, and is near.
            assert low * energy <= lower and high * energy >= upper
            assert low * energy >= lower * Fraction(99, 100) and high * energy <= upper * Fraction(101, 100)


def test_states_of_entries(run: lb.NetworkRun) -> None:
    states = [[state(entry) for entry in of_layer] for of_layer in run.grid]
    assert states[1][1] == "partly" and states[-1][-1] == "refused"
    entry = run.grid[0][0]
    entry.limit[:] = -1.0
    assert state(entry) == "not yet"
    entry.limit[:], entry.status = 0.0, ["relaxed"] * len(entry.sets)
    assert state(entry) == "first bounds"
    entry.limit[0] = 0.5
    assert state(entry) == "searched"
    entry.status = ["optimal"] * len(entry.sets)
    assert state(entry) == "proven"


def test_sums_over_the_network_hold(run: lb.NetworkRun) -> None:
    for place, total in enumerate(totals(run)):
        able = [of_layer[place] for of_layer in run.grid if of_layer[place].refused is None]
        exact = [sum(map(Fraction, e.lower.tolist())) / Fraction(e.layer.energy) for e in able]
        assert Fraction(total.relative[0]) <= sum(exact) and total.relative[0] == pytest.approx(float(sum(exact)))
        assert total.weighted is not None
        whole = sum(Fraction(e.layer.energy) for e in able)
        lower = sum(sum(map(Fraction, e.lower.tolist())) for e in able)
        assert Fraction(total.weighted[0]) <= lower / whole
        if all(e.visited for e in able):
            upper = sum(sum(map(Fraction, e.upper.tolist())) for e in able)
            assert Fraction(total.weighted[1]) >= upper / whole
        else:
            assert math.isinf(total.weighted[1])
    covered = coverage(run)
    assert (covered.layers, covered.refused, covered.complete) == (3, 1, False)
    assert covered.bounded == covered.sets - 3
    assert "Not complete: 3 of" in read(page(run)).text


def test_layers_without_energy_count_nothing(run: lb.NetworkRun) -> None:
    for entry in run.grid[0]:
        object.__setattr__(entry.layer, "energy", 0.0)
        entry.lower[:] = entry.upper[:] = 0.0
    assert relative(run.grid[0][0]) is None and weighted_sum([run.grid[0][0]]) is None
    assert "no energy" in read(page(run)).text
    assert rows(run.entries)[0]["sqnr_db"] is None


def test_nothing_is_known_yet(run: lb.NetworkRun) -> None:
    for entry in run.entries:
        entry.lower[:], entry.upper[:], entry.limit[:] = 0.0, np.inf, -1.0
        entry.methods.clear()
        entry.yardsticks.clear()
    text = read(page(run)).text
    assert "Not complete" in text and "How well can each layer be compressed?" not in text
    run.interrupted = True
    assert "Interrupted" in read(page(run)).text


def test_verdicts(run: lb.NetworkRun) -> None:
    (pair,) = pairs(run)
    assert (pair.quantization, pair.pruning) == ("INT4", "pruned to density 0.25")
    assert "density 4/16" in pair.rule
    # One layer is known in part, and one cannot be pruned.
    (duel,) = pair.duels
    assert duel.verdict == Verdict.QUANTIZATION and duel.sets is not None and sum(duel.sets.values()) == 4
    low = duel.pruned.lower.copy()
    duel.pruned.lower[:] = duel.quantized.lower
    assert pairs(run)[0].duels[0].verdict == Verdict.OPEN
    duel.pruned.lower[:] = low
    for of_layer in run.grid:
        del of_layer[1]
    for of_layer in run.grid:
        for place, entry in enumerate(of_layer):
            entry.number = (entry.number[0], place)
    assert pairs(run) == [] and "no pair of a quantization and a pruning" in read(page(run)).text
    for of_layer in run.grid:
        for entry in of_layer:
            entry.storage = 100
    assert pairs(run)[0].rule == "equal storage"


def test_yardsticks_are_called_no_certificates(run: lb.NetworkRun) -> None:
    text = page(run)
    assert "typical lattice: yardstick, no certificate" in text
    hints = re.findall(r"<title>([^<]*typical lattice[^<]*)</title>", text)
    assert len(hints) == 6 and all("no certificate" in hint for hint in hints)
    assert "and <strong>no certificates</strong>" in text


def test_shown_digits_are_bounds() -> None:
    rng = np.random.default_rng(1)
    for value in 10.0 ** rng.uniform(-12, 9, 300):
        low, high = rounded(value, False), rounded(value, True)
        assert Fraction(_plain(low)) <= Fraction(value) <= Fraction(_plain(high))
        assert float(_plain(low)) == pytest.approx(value, rel=2e-3)
        assert Fraction(_plain(rounded(value, True, unit=2))) >= 100 * Fraction(value)
    assert rounded(0.99995, True) == "1.000" and rounded(0.99995, False) == "0.9999"
    assert rounded(math.inf, True) == "∞" and rounded(None, True) == "–" and rounded(0.0, True) == "0"
    assert rounded(5e-324, False, unit=2) == "4.940e−322"
    assert ends((0.25, 0.25)) == "0.2500" and ends((0.1, math.inf), 2) == "0.10 – ∞" and ends(None) == "–"


def _plain(text: str) -> str:
    return text.replace("−", "-")


def test_axes() -> None:
    assert log_axis([0.0, math.inf], "") is None
    for values in ([1e-9, 1.0], [0.5], [1.0, 1.01], [1e-300, 1e300], [0.02, 0.3]):
        axis = log_axis(values, "title", percent=True)
        assert axis is not None and len(axis.ticks) >= 1
        places = [axis.place(value) for value in values]
        assert places == sorted(places) and all(0 <= place <= 100 for place in places)
        xs = [tick.x for tick in axis.ticks]
        assert all(b - a >= 8 for a, b in pairwise(xs))
    assert axis.place(0.0) == 0.0 and axis.place(math.inf) == 100.0
    assert short("model.layers.10.self_attn.q_proj") == "…s.10.self_attn.q_proj" and short("fc") == "fc"


def test_command_asks_for_the_same(run: lb.NetworkRun) -> None:
    words = command(run)
    assert "--problems 2,4,0.25" in words and "--methods rtn,gptq --seed 7" in words
    # Pages are sent to others: no folders of this machine.
    assert str(run.folder.path.parent) not in words and str(run.folder.path.parent) not in page(run)
    for text in ("3", "nf4", "2:4", ".25", "4+2:4", "channel+.5", "k=8", "2:4+share=8", "block:4+k=2+share=all"):
        spec = parse_contender(text)
        assert parse_contender(contender(vars(spec))) == spec
    assert contender(vars(Spec(density=0.1))) == "0.1"


def test_without_extras(run: lb.NetworkRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solution = lb.solve(lb.quantization_problem(lb.Layer(np.eye(2), np.eye(2)), 2), jobs=1)
    for name in ("jinja2", "pandas", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    assert [path.name for path in lb.write_report(run, tmp_path / "out")] == ["report.csv"]
    assert [sentence.split()[0] for sentence in missing_parts()] == ["report.html", "report.parquet"]
    with pytest.raises(MissingExtraError, match=r"layerbounds\[report\]"):
        page(run)
    for frame in (run.to_frame, solution.to_frame):
        with pytest.raises(MissingExtraError, match=r"layerbounds\[frame\]"):
            frame()


def test_places_that_cannot_be_written(run: lb.NetworkRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot create the folder"):
        lb.write_report(run, tmp_path / "absent" / "deeper")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot create the folder"):
        lb.write_report(run, tmp_path / "file")
    with pytest.raises(InputError, match="run is None"):
        lb.write_report(None)  # type: ignore[arg-type]


def test_frames_of_solutions(small_layer: lb.Layer) -> None:
    pytest.importorskip("pandas")
    solution = lb.solve(lb.pruning_problem(small_layer, pattern="2:3"), time_limit=1.0, jobs=1)
    frame = solution.to_frame()
    assert frame["channels"].tolist() == ["0", "1", "2", "3", "4"]
    assert np.array_equal(frame["lower_bound"], solution.lower_bound)
    assert np.array_equal(frame[["sqnr_db", "best_sqnr_db"]], solution.sqnr_db)
    assert frame["fingerprint"].unique().tolist() == [solution.problem.fingerprint()]
    assert frame["bitmap_bits_per_weight"][0] == frame["bits_per_weight"][0] + 1.0
    assert set(frame["status"]) == set(map(str, solution.status))


def test_command_line(small_layer: lb.Layer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    lb.run([small_layer], out=out, bits=2, density=0.5, time_limit=0.0, parallel="threads", jobs=1, methods=["rtn"])
    assert main(["report", str(out), "--out", str(tmp_path / "pages"), "--json", str(tmp_path / "report.json")]) == 0
    said = capsys.readouterr()
    assert "INT2" in said.out and "report.html" in said.err
    assert (tmp_path / "pages" / "report.html").is_file() and not (out / "report.html").exists()
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["complete"] and found["summary"]["coverage"]["sets"] == 10 and len(found["records"]) == 2
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    for name, said_of in (("report.html", "are the same file"), ("run.json", "would replace")):
        assert main(["report", str(out), "--json", str(out / name)]) == 2
        assert said_of in capsys.readouterr().err
    assert main(["report", str(out), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["verdicts"] == []


def test_page_of_drawn_channels(rng: np.random.Generator, tmp_path: Path) -> None:
    x = rng.normal(size=(40, 6))
    layers = [lb.Layer.from_activations(rng.normal(size=(8, 6)), x, "first")]
    run = lb.run(layers, out=tmp_path / "run", bits=2, sample=3, time_limit=0.0, parallel="threads", jobs=1, methods=[])
    text = read(page(run)).text
    assert "What is known of the channels that were not drawn?" in text and "95 % confidence" in text
    entry: Entry = run.entries[0]
    assert f"{len(entry.layer.channels)} of 8 output channels were compared" in text
    assert "--channels-sample 3" in command(run)


def test_documents_list_the_columns() -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "report.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([a-z_]+)` \| (?:text|integer|number|yes or no) \|", text, re.M)
    assert listed == [column.name for column in COLUMNS]


def test_fronts_hold_between_their_points(tmp_path: Path) -> None:
    names = [f"layer{i}" for i in range(70)]
    run = made_run(tmp_path, names)
    partly = run.grid[1][1]
    partly.upper[:], partly.limit[:] = np.minimum(partly.upper, partly.energy), 0.0
    drawn = front_chart(run)
    assert drawn is not None
    chart = drawn[0]
    weights = sum(layer.weights for layer in run.layers)
    points = allocation_front(run)
    assert chart.upright is not None and len(chart.bars) < 300
    for bits in np.linspace(points[0].storage, points[-1].storage, 50):
        point = [p for p in points if p.storage <= bits][-1]
        x = chart.axis.place(bits / weights)
        bar = [bar for bar in chart.bars if bar.x <= x][-1]
        # What is drawn spans what is certified, to a tenth of a pixel and the least height.
        assert bar.y <= chart.down(point.upper) + 0.2 and bar.y + bar.height >= chart.down(point.lower) - 0.2
    spaced = [FrontPoint(1000 * i, 100.0 - i, 101.0 - i, {}) for i in range(65)]
    moved = _stepwise(spaced)
    assert [p.lower for p in moved] == [99.0 - i for i in range(64)] + [36.0]
    assert [p.upper for p in moved] == [p.upper for p in spaced] and _stepwise(spaced[:5]) == spaced[:5]
