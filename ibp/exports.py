"""Results for Mathematica, FORM, Kira, JSON and sympy, and back."""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Collection, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from ibp.arithmetic import names_in
from ibp.coefficients import expressions_of, matrices_of, names_in_coefficients, series_text
from ibp.console import write_output
from ibp.errors import UNREADABLE, InputError, __version__, in_short
from ibp.families import Index

EXPORT_FORMAT = 1
EXPORT_FILES = {  # beside the output, of whose name {} is the stem
    "mathematica": "{}.m",
    "form": "{}.inc",
    "kira": "kira_{}.m",
    "json": "{}.json",
    "sympy": "{}.py",
}
COMMENTS = {"mathematica": ("(* ", " *)"), "kira": ("(* ", " *)"), "form": ("* ", ""), "sympy": ("# ", "")}
FORM_OWN = ("num", "den", "D")  # functions in exports to FORM, the last one in differential equations
MATHEMATICA_OWN = {"C", "D", "E", "I", "K", "N", "O"}  # names of one letter that mean something there


def parse_formats(texts: Iterable[str]) -> tuple[str, ...]:
    """Names of formats from the values of --export. Raises InputError."""
    names = [name.strip() for text in texts for name in text.split(",")]
    for name in names:
        if name not in EXPORT_FILES:
            raise InputError(f"--export {name!r}: unknown format; known: {', '.join(EXPORT_FILES)}")
    return tuple(dict.fromkeys(names))


def export_path(output: Path, name: str, expanded: bool = False) -> Path:
    """reduction.pkl gives reduction.m, kira_reduction.m, …; reduction_eps.m where the coefficients are expanded in eps."""
    return output.with_name(EXPORT_FILES[name].format(output.stem + "_eps" * expanded))


def write_exports(record: dict[str, Any], output: Path, names: Iterable[str]) -> list[Path]:
    """A result in every format asked for, and its expansions where it has them. Raises ReductionError, InputError."""
    written = []
    for name in names:
        texts = {export_path(output, name): export_text(record, name)}
        if "epsilon" in record:
            texts[export_path(output, name, expanded=True)] = export_text(expanded_record(record), name)
        for path, text in texts.items():
            write_output(path, text.encode(), f"--export {name}:")
        written += texts
    return written


def expanded_record(record: dict[str, Any]) -> dict[str, Any]:
    """A result with the truncated series as coefficients, in texts; 'truncated' says what d is, the symbol and the order."""
    own = record["epsilon"]

    def texts(rows: dict[Any, dict[Index, Any]]) -> dict[Any, dict[Index, str]]:
        return {row: {term: series_text(c, own["symbol"]) for term, c in entries.items() if c} for row, entries in rows.items()}

    about = {name: own[name] for name in ("d", "symbol", "order")}
    result = {key: value for key, value in record.items() if key != "epsilon"} | {
        "reductions": texts(own["reductions"]),
        "truncated": about,
    }
    if "matrices" in own:
        matrices = {x: texts(matrix) for x, matrix in own["matrices"].items()}
        result["differential_equation"] = record["differential_equation"] | {"matrices": matrices}
    return result


def export_text(record: dict[str, Any], name: str) -> str:
    """A result in one of the formats; coefficients modulo a prime are integers, and the prime stands in the header. Raises InputError."""
    header = {"program": "ibp_reduce", "format": EXPORT_FORMAT, "export": name, "version": __version__}
    about = ("family", "prime", "d", "kinematics", "truncated", "symmetries", "cuts", "unreduced")
    header |= {key: record[key] for key in about if key in record}
    matrices = matrices_of(record)
    if matrices:
        header["variables"] = list(matrices)
    if name == "json":
        return _json_text(header, expressions_of(record))
    named = [target for target in record["reductions"] if isinstance(target, str)]
    own = FORM_OWN if matrices else FORM_OWN[:2]
    check_export_names(name, record["family"], names_in_coefficients(record) | set(matrices), own, named)
    before, after = integral_brackets(name, record["family"])
    rules = []
    for variable, target, expression in expressions_of(record):
        integrals = [f"{before}{','.join(map(str, indices))}{after}" for indices in expression]
        left = target if isinstance(target, str) else f"{before}{','.join(map(str, target))}{after}"
        factors = [_factor(value, name) for value in expression.values()]
        terms = [f"{m}*{c}" if name == "kira" else f"{c}*{m}" for m, c in zip(integrals, factors)]
        rules.append((derivative_text(name, variable, left), terms or ["0"]))
    opening, closing = COMMENTS[name]
    body = {"form": _form_text, "sympy": _sympy_text}.get(name, _mathematica_text)(rules)
    return f"{opening}{json.dumps(header)}{closing}\n{body}"


def _mathematica_text(rules: list[tuple[str, list[str]]]) -> str:
    """A list of replacement rules; the layout is that of Kira's own tables."""
    return "{\n" + ",\n".join(f"{left} -> \n" + "".join(f" + {term}\n" for term in terms) for left, terms in rules) + "}\n"


def _form_text(rules: list[tuple[str, list[str]]]) -> str:
    return "".join(f"id {left} =\n" + "\n".join(f" + {term}" for term in terms) + ";\n" for left, terms in rules)


def _sympy_text(rules: list[tuple[str, list[str]]]) -> str:
    """A Python file with one dict of texts."""
    lines = ["reductions = {"]
    for left, terms in rules:
        lines += [f'    "{left}": (', *(f'        " + {term}"' for term in terms), "    ),"]
    return "\n".join([*lines, "}"]) + "\n"


def _json_text(header: dict[str, Any], equations: Iterable[tuple[str, Index | str, dict[Index, Any]]]) -> str:
    rules = [
        ({"variable": variable} if variable else {})
        | {"combination" if isinstance(target, str) else "integral": target}
        | {"terms": [{"integral": term, "coefficient": str(value)} for term, value in expression.items()]}
        for variable, target, expression in equations
    ]
    return f'{{"header": {json.dumps(header)},\n"reductions": [\n' + ",\n".join(map(json.dumps, rules)) + "\n]}\n"


def integral_brackets(name: str, family: str) -> tuple[str, str]:
    """What stands before and after the indices of an integral; names that a program would not read are quoted as it demands."""
    plain = re.fullmatch("[A-Za-z][A-Za-z0-9]*", family) is not None
    head = family if plain else f"[{family}]" if name == "form" else f'"{family}"'
    return {"mathematica": (f"G[{head},{{", "}]"), "kira": (f"{head}[", "]"), "form": (f"{head}(", ")"), "sympy": ("G(", ")")}[name]


def derivative_text(name: str, variable: str, integral: str) -> str:
    """The left side of an equation in this variable: DG[t,…] and DG(t,…) where the integral is G[…] or G(…), in FORM D(t)*integral."""
    if not variable:
        return integral
    if name == "kira":
        raise InputError("--export kira: holds reductions only; a differential equation goes to mathematica, form, json or sympy")
    return f"D({variable})*{integral}" if name == "form" else f"D{integral[:2]}{variable},{integral[2:]}"


def check_export_names(
    name: str, family: str, symbols: Collection[str], own: Collection[str] = FORM_OWN[:2], combinations: Sequence[str] = ()
) -> None:
    """Raises InputError where a symbol of the coefficients would mean something else to the program that reads them.

    own: functions that the export to FORM uses. combinations: names of targets, which become symbols.
    """
    if combinations and name == "kira":
        raise InputError(f"--export kira: holds integrals only; the combination {combinations[0]} goes to mathematica, form, json or sympy")
    if clash := {"G", family}.intersection(combinations) | set(symbols).intersection(combinations) if name != "json" else ():
        raise InputError(f"--export {name}: {min(clash)} would be a combination and something else there; rename it, or export to json")
    used = (*symbols, *combinations)
    bad = [] if name in ("sympy", "json") else sorted(s for s in used if not re.fullmatch("[A-Za-z][A-Za-z0-9]*", s))
    bad += [s for s in combinations if name == "sympy" and not (s.isidentifier() and s.isascii())]
    if name in ("mathematica", "kira"):
        bad += sorted(MATHEMATICA_OWN.intersection(used))
    if name == "form":
        bad += sorted(set(own).intersection((*used, family)) | {family}.intersection(symbols))
    if bad:
        others = "json" if name == "sympy" else "json or sympy"
        raise InputError(f"--export {name}: the name {bad[0]} is not free there; rename it in the family, or export to {others}")


def _factor(value: int | Fraction | str, name: str) -> str:
    """A coefficient as a factor: a natural number as it is, everything else in parentheses (or in FORM's num and den)."""
    text = str(value)
    if name == "form" and re.search(r"[()]|/\s*[^\s0-9]", text):  # all else FORM reads as it is
        above, below = (part.replace("**", "^") for part in numerator_and_denominator(text))
        return f"num({above})" + f"*den({below})" * (below != "1")
    if name != "sympy":
        text = text.replace("**", "^")
    return text if text.isdecimal() and name != "kira" else f"({text})"


def numerator_and_denominator(text: str) -> tuple[str, str]:
    """Texts of polynomials whose quotient the coefficient is, as it stands where it is a product, else brought together by sympy."""
    above, below = [], []
    if len(_split(text.lstrip("+- "), "+-")) == 1:
        for sign, factor in _split(text, "*/"):
            (below if sign == "/" else above).append(factor.strip())
    else:
        above.append(text)
    if any(re.search(r"/\s*[^\s0-9]|(\*\*|\^)\s*\(?\s*-", part) for part in (*above, *below)):
        from sympy import Symbol, fraction, sympify, together

        quotient = together(sympify(text, locals={name: Symbol(name) for name in names_in(text)}))
        above, below = ([str(part)] for part in fraction(quotient))
    return tuple("*".join(f"({p})" if len(parts) > 1 else _without_parentheses(p) for p in parts) or "1" for parts in (above, below))


def _split(text: str, signs: str) -> list[tuple[str, str]]:
    """Cut at these signs outside all brackets and quotes: (sign before, part); a power '**' and its sign are no cut."""
    parts, depth, sign, begin = [], 0, "", 0
    for match in re.finditer(r'"[^"]*"|(?:\*\*|\^)\s*[+-]?|.', text, re.DOTALL):
        token = match[0]
        depth += (token in "([{") - (token in ")]}")
        if depth == 0 and token in signs and len(token) == 1:
            parts.append((sign, text[begin : match.start()]))
            sign, begin = token, match.end()
    parts.append((sign, text[begin:]))
    return [(sign, part) for sign, part in parts if part.strip()]


def _without_parentheses(text: str) -> str:
    """Without the pairs of them around the whole text."""
    text = text.strip()
    while len(text) > 2 and (text[0], text[-1]) == ("(", ")") and min(itertools.accumulate((c == "(") - (c == ")") for c in text[:-1])) > 0:
        text = text[1:-1].strip()
    return text


def read_export(path: str | Path) -> dict[str, Any]:
    """The header of an exported file, with 'reductions' as in a result: integers modulo the prime, Fractions, or texts for sympy.

    One of differential equations has 'differential_equation' with the 'matrices' of a result, too.

    Raises InputError for a file that is none.
    """
    where = f"export {path}"
    try:
        text = Path(path).read_text(encoding="utf-8")
        first, _, body = text.partition("\n")
        if first.startswith('{"header": '):
            data = json.loads(text)
            header, rules = (
                data["header"],
                [
                    (
                        rule.get("variable", ""),
                        rule["combination"] if "combination" in rule else tuple(rule["integral"]),
                        [(tuple(term["integral"]), term["coefficient"]) for term in rule["terms"]],
                    )
                    for rule in data["reductions"]
                ],
            )
        else:
            header = json.loads(first.lstrip("(*# ").removesuffix(" *)"))
            rules = _read_rules(header["export"], header["family"], header.get("variables", ()), body)
        if header["program"] != "ibp_reduce" or header["format"] != EXPORT_FORMAT:
            raise ValueError("another program or format")
        modular = header["prime"] is not None
        matrices: dict[str, dict[Index, dict]] = {variable: {} for variable in ("", *header.get("variables", ()))}
        for variable, target, terms in rules:
            matrices[variable][target] = {term: _read_coefficient(c, modular) for term, c in terms}
        result = header | {"reductions": matrices.pop("")}
        return result | ({"differential_equation": {"matrices": matrices}} if matrices else {})
    except OSError as error:
        raise InputError(f"{where}: {error.strerror}") from None
    except (*UNREADABLE, SyntaxError, RecursionError) as error:
        raise InputError(f"{where}: not readable ({in_short(error)})") from None


def _read_rules(name: str, family: str, variables: Collection[str], body: str) -> list[tuple[str, Index | str, list[tuple[Index, str]]]]:
    """Variable ('' in a reduction), target, and its terms as (integral, coefficient). Raises ValueError."""
    before, after = integral_brackets(name, family)
    if name == "sympy":
        (assignment,) = ast.parse(body).body
        sides = list(ast.literal_eval(assignment.value).items())
    elif name == "form":
        sides = [part.strip().removeprefix("id ").split("=") for _, part in _split(body, ";")]
    else:
        sides = [part.split("->") for _, part in _split(body.strip().removeprefix("{").removesuffix("}"), ",")]
    integral = re.compile(re.escape(before) + r"(-?[0-9]+(?:,-?[0-9]+)*)" + re.escape(after))

    def read_term(term: str) -> tuple[Index, str]:
        found = integral.search(term)
        if not found:
            raise ValueError(f"no integral in {term.strip()[:40]!r}")
        rest = term[: found.start()].strip().rstrip("*") + term[found.end() :].strip().lstrip("*")
        return tuple(map(int, found[1].split(","))), rest or "1"

    rules = []
    for left, right in sides:
        derivative = re.match(r"\s*D(?:\((\w+)\)\*|(G[\[(])(\w+),)", left) if variables else None  # else a family may be called DG
        variable = derivative[1] or derivative[3] if derivative else ""
        if re.fullmatch(r"\s*[A-Za-z_]\w*\s*", left):  # a combination
            target, rest = left.strip(), "1"
        else:
            target, rest = read_term((derivative[2] or "") + left[derivative.end() :] if derivative else left)
        if rest != "1":
            raise ValueError(f"{left.strip()[:40]!r} is not one integral")
        rules.append((variable, target, [read_term(term) for _, term in _split(right, "+") if term.strip() != "0"]))
    return rules


def _read_coefficient(text: str, modular: bool) -> int | Fraction | str:
    text = text.strip().replace("^", "**")
    if match := re.fullmatch(r"num(\(.*?\))(?:\*den(\(.*\)))?", text, re.DOTALL):
        text = match[1] if match[2] is None else f"{match[1]}/{match[2]}"
    text = _without_parentheses(text)
    if modular:
        return int(text)
    return Fraction(text) if re.fullmatch(r"-?[0-9]{1,100000}(/0*[1-9][0-9]*)?", text) else text
