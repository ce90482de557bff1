"""GPTQ and AWQ call their tensors by the same names; which of their layouts a layer has, and what its file says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from layerbounds.checkpoints.source import Source
from layerbounds.exceptions import FileFormatError
from layerbounds.layers.tensor_files import FLOAT_NAMES, WIDE_FLOATS, Entry

Layout = Literal["gptq", "gemm", "gemv", "gemv_fast"]
Family = Literal["gptq", "awq"]

QWEIGHT = ".qweight"
#: Bits of the words that codes are packed into.
WORD_BITS = {"I8": 8, "U8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64}
#: AWQ packs eight codes of four bits into a word.
AWQ_BITS, AWQ_FIELDS = 4, 8
GPTQ_BITS = range(2, 9)

_FAMILIES: dict[str, Family] = {"gptq": "gptq", "gptqmodel": "gptq", "awq": "awq"}
_AUTO_ROUND = ("auto-round", "intel/auto-round")
_GPTQ_LABELS = ("gptq", "gptq_v2", "gptq_p", "gemm")
_AWQ_LAYOUTS: dict[str, Layout] = {"gemm": "gemm", "gemv": "gemv", "gemv_fast": "gemv_fast", "llm-awq": "gemv_fast"}
#: Tensors of methods that rotate or scale inputs beside what GPTQ and AWQ store.
_TRANSFORMED = ("theta", "pairs", "channel_scales")


def layers(source: Source, family: Family) -> list[str]:
    """The layers of a file that are stored in a layout of GPTQ or AWQ.

    Raises
    ------
    FileFormatError
        If the configuration names a variant that is not known, or nothing is stored as it says.
    """
    if not _concerned(source):
        return []
    stems = sorted(name.removesuffix(QWEIGHT) for name in source.names if name.endswith(QWEIGHT))
    found = [stem for stem in stems if (layout(source, stem) == "gptq") == (family == "gptq")]
    said = stated_family(source)
    if said == family and (found or not stems):
        _check_variant(source, family)
    if said == family and not stems and _method(source) in _FAMILIES:
        raise FileFormatError(
            f"{source.path} is said to be {family.upper()}, but no tensor ends with {QWEIGHT}; name the file, "
            "or the index of shards, that has the quantized layers."
        )
    return found


def layout(source: Source, name: str) -> Layout:
    """How a layer is stored: by the shapes of its tensors, and by the configuration where these do not decide.

    Shapes agree with GPTQ's and with ``gemv`` only where GPTQ's has 4 bits and groups of 8 inputs; such layers have a
    ``g_idx`` if they are GPTQ's.
    """
    fitting = fitting_layouts(source, name)
    if len(fitting) == 1:
        return fitting[0]
    said = stated_family(source)
    version = str(source.quantization.get("version") or source.quantization.get("format") or "gemm").lower()
    if said is None and fitting and f"{name}.g_idx" not in source.names:
        return "gemv"
    if said != "awq":
        return "gptq"
    stated = _AWQ_LAYOUTS.get(version, "gemm")
    return stated if stated in fitting else next((form for form in fitting if form != "gptq"), stated)


def stated_family(source: Source) -> Family | None:
    """What the configuration says a file is."""
    method = _method(source)
    if method in _AUTO_ROUND:
        return "awq" if "awq" in _packing(source) else "gptq"
    if method in _FAMILIES:
        return _FAMILIES[method]
    # The configuration of AutoAWQ, beside the weights, names no method.
    return "awq" if "w_bit" in source.quantization else None


def stated_label(source: Source) -> str | None:
    """What the configuration says about how GPTQ stores zero points: ``gptq``, ``gptq_v2`` or ``gptq_p``."""
    if _method(source) in _AUTO_ROUND:
        return "gptq" if "auto_gptq" in _packing(source) else "gptq_v2"
    for key in ("checkpoint_format", "format"):
        value = source.quantization.get(key)
        if isinstance(value, str) and value:
            return value.lower()
    return None


def setting(source: Source, name: str, *keys: str) -> Any:
    """A setting of one layer under the first of several names, said for it alone or for all; None where it is not."""
    for content in (_override(source, name), source.quantization):
        for key in keys:
            if content.get(key) is not None:
                return content[key]
    return None


def whole_setting(source: Source, name: str, *keys: str) -> int | None:
    """A setting that is a whole number; None where nothing is said.

    Raises
    ------
    FileFormatError
        If it is something else.
    """
    value = setting(source, name, *keys)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise source.fault(f"the configuration says {value!r} for {keys[0]} of layer {name!r}, which is no whole number")


def matrix(source: Source, name: str) -> Entry:
    """Type and shape of a tensor with two axes.

    Raises
    ------
    FileFormatError
        If it is missing, empty, or of another shape.
    """
    entry = source.entry(name)
    if len(entry.shape) != 2 or 0 in entry.shape:
        raise source.fault(f"tensor {name!r} has shape {entry.shape} where a matrix is expected")
    return entry


def float_type(source: Source, name: str) -> str:
    """The type that weights get from scales of the type that is stored.

    Raises
    ------
    FileFormatError
        If they are not stored as floats of 16 or 32 bits.
    """
    kind = source.entry(name).kind
    if kind not in FLOAT_NAMES:
        raise source.fault(f"tensor {name!r} is of type {kind}, which is none of scales ({', '.join(FLOAT_NAMES)})")
    return FLOAT_NAMES[kind]


def check_untransformed(source: Source, name: str) -> None:
    """Refuse a layer whose inputs are transformed before they meet its weights."""
    beside = [part for part in _TRANSFORMED if f"{name}.{part}" in source.names]
    if beside:
        raise FileFormatError(
            f"{source.path}: layer {name!r} has the tensor {beside[0]!r}, so that its inputs are rotated or scaled "
            "before they meet these weights; such files are not known here."
        )


def groups_in_words(groups: int, size: int | None) -> str:
    """How a layer's scales are shared."""
    if groups == 1:
        return "one scale per channel"
    return f"{groups} groups by g_idx" if size is None else f"groups of {size}"


def fitting_layouts(source: Source, name: str) -> list[Layout]:
    """The layouts with which the shapes and types of a layer's tensors agree."""
    names = [f"{name}{end}" for end in (QWEIGHT, ".scales", zeros_end(source, name))]
    if any(part not in source.names for part in names):
        return []
    weight, scales, zeros = (source.entry(part) for part in names)
    if any(len(entry.shape) != 2 or 0 in entry.shape for entry in (weight, scales, zeros)):
        return []
    (rows, columns), (first, second), kinds = weight.shape, scales.shape, {weight.kind, zeros.kind}
    found: list[Layout] = []
    if kinds == {weight.kind} and weight.kind in WORD_BITS and (columns, first) == (second, zeros.shape[0]):
        width = WORD_BITS[weight.kind]
        if any(-(-columns * bits // width) == zeros.shape[1] for bits in GPTQ_BITS):
            found.append("gptq")
    if kinds == {"I32"} and rows > first and columns * AWQ_FIELDS == second and zeros.shape == (first, columns):
        found.append("gemm")
    if kinds == {"I32"} and rows == first == zeros.shape[0] and zeros.shape[1] * AWQ_FIELDS == second:
        found.append("gemv")
    if weight.kind == "I16" and zeros.kind in WIDE_FLOATS and zeros.shape == scales.shape and rows * 4 == second:
        found.append("gemv_fast")
    return found


def zeros_end(source: Source, name: str) -> str:
    """How the tensor with the zero points ends: ``.scaled_zeros`` in files of llm-awq."""
    scaled = ".scaled_zeros"
    return scaled if f"{name}{scaled}" in source.names else ".qzeros"


def _method(source: Source) -> str:
    return str(source.quantization.get("quant_method") or source.quantization.get("method") or "").lower()


def _packing(source: Source) -> str:
    return str(source.quantization.get("packing_format") or "auto_round:auto_gptq").lower()


def _concerned(source: Source) -> bool:
    method = _method(source)
    return not method or method in _FAMILIES or method in _AUTO_ROUND


def _check_variant(source: Source, family: Family) -> None:
    if _method(source) in _AUTO_ROUND:
        return
    known: tuple[str, ...]
    if family == "gptq":
        said, known = stated_label(source), _GPTQ_LABELS
    else:
        value = source.quantization.get("version") or source.quantization.get("format")
        said, known = (str(value).lower() if value else None), tuple(_AWQ_LAYOUTS)
    if said is not None and said not in known:
        raise FileFormatError(
            f"{source.path} is {family.upper()} of the variant {said!r}, which is not known here; "
            f"known are {', '.join(known)}."
        )


def _override(source: Source, name: str) -> Mapping[str, Any]:
    """What the configuration says for one layer: GPTQModel's ``dynamic``, AutoRound's ``extra_config``."""
    for key in ("dynamic", "extra_config"):
        rules = source.quantization.get(key)
        if not isinstance(rules, Mapping):
            continue
        if key == "extra_config" and isinstance(rules.get(name), Mapping):
            return rules[name]  # type: ignore[no-any-return]
        for pattern, rule in rules.items():
            expression = str(pattern).removeprefix("+:")
            try:
                found = expression == name or re.match(expression, name)
            except re.error as error:
                raise source.fault(f"the configuration has the pattern {pattern!r}, which is none ({error})") from error
            if found and isinstance(rule, Mapping):
                return rule
    return {}
