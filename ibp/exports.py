"""Results in the formats of other programs, and back.

`FORMATS` has one entry for each: an instance of a subclass of `Format`, which says how integrals, coefficients and rules look there, which
names are not free, and how rules are read back. A new format is one more class and one more entry. `write_exports` and `read_export` are
the files.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from executors import __version__
from ibp.arithmetic import calculate, names_in
from ibp.coefficients import expressions_of, matrices_of, names_in_coefficients, series_text
from ibp.console import write_output
from ibp.errors import UNREADABLE, InputError, in_short
from ibp.families import Index

EXPORT_FORMAT = 1
PLAIN_NAME = re.compile("[A-Za-z][A-Za-z0-9]*")
Rule = tuple[str, Index | str, dict[Index, Any]]  # variable ('' in a reduction), target, its expression


def _not_plain(*names: str) -> list[str]:
    return sorted(name for name in names if not PLAIN_NAME.fullmatch(name))


class Format:
    """How results look in one program's language. Below: a sum of terms coefficient*integral for each target."""

    file = "{}.txt"  # beside the output, of whose name {} is the stem
    comment = ("", "")  # what stands before and after the header in the first line
    combinations = True  # may have targets with a name, and differential equations
    reserved = frozenset({"G"})  # names that a combination must not have; None where all are free
    quotes = '""'  # around a family's name that is no plain one

    def head(self, family: str) -> str:
        return family if PLAIN_NAME.fullmatch(family) else family.join(self.quotes)

    def brackets(self, family: str) -> tuple[str, str]:
        """What stands before and after the indices of an integral."""
        raise NotImplementedError

    def label(self, combination: str) -> str:
        """A combination as the left side."""
        return combination

    def derivative(self, variable: str, integral: str) -> str:
        """The left side of an equation in this variable."""
        return f"D{integral[:2]}{variable},{integral[2:]}"

    def factor(self, coefficient: str) -> str:
        """A coefficient as a factor: a natural number as it is, everything else in parentheses."""
        text = coefficient.replace("**", "^")
        return text if text.isdecimal() else f"({text})"

    def term(self, integral: str, coefficient: str) -> str:
        return f"{self.factor(coefficient)}*{integral}"

    def body(self, sides: Iterable[tuple[str, list[str]]]) -> str:
        """Left sides, and the terms of right sides, put together."""
        raise NotImplementedError

    def sides(self, body: str) -> Iterable[Sequence[str]]:
        """(left, right) of what `body` has made."""
        raise NotImplementedError

    def taken(self, symbols: Collection[str], combinations: Sequence[str], family: str, derivatives: bool) -> list[str]:
        """Names that would mean something else to the program."""
        return []

    def text(self, header: dict[str, Any], rules: Iterable[Rule]) -> str:
        before, after = self.brackets(header["family"])
        sides = []
        for variable, target, expression in rules:
            integrals = [f"{before}{','.join(map(str, indices))}{after}" for indices in expression]
            left = self.label(target) if isinstance(target, str) else f"{before}{','.join(map(str, target))}{after}"
            terms = list(map(self.term, integrals, map(str, expression.values())))
            sides.append((self.derivative(variable, left) if variable else left, terms or ["0"]))
        opening, closing = self.comment
        return f"{opening}{json.dumps(header)}{closing}\n{self.body(sides)}"

    def rules(self, header: dict[str, Any], body: str) -> Iterator[tuple[str, Index | str, list[tuple[Index, str]]]]:
        """Variable, target, and its terms as (integral, coefficient). Raises ValueError."""
        before, after = self.brackets(header["family"])
        integral = re.compile(re.escape(before) + r"(-?[0-9]+(?:,-?[0-9]+)*)" + re.escape(after))

        def read_term(term: str) -> tuple[Index, str]:
            found = integral.search(term)
            if not found:
                raise ValueError(f"no integral in {term.strip()[:40]!r}")
            rest = term[: found.start()].strip().rstrip("*") + term[found.end() :].strip().lstrip("*")
            return tuple(map(int, found[1].split(","))), rest or "1"

        for left, right in self.sides(body):
            # without variables a family may be called DG
            derivative = re.match(r"\s*D(?:\((\w+)\)\*|(G[\[(])(\w+),)", left) if header.get("variables") else None
            variable = derivative[1] or derivative[3] if derivative else ""
            if re.fullmatch(r"\s*[A-Za-z_]\w*\s*", left):  # a combination
                target, rest = left.strip(), "1"
            else:
                target, rest = read_term((derivative[2] or "") + left[derivative.end() :] if derivative else left)
            if rest != "1":
                raise ValueError(f"{left.strip()[:40]!r} is not one integral")
            yield variable, target, [read_term(term) for _, term in _split(right, "+") if term.strip() != "0"]


class Mathematica(Format):
    """A list of replacement rules for G[family,{indices}], DG[variable,family,{indices}]; the layout is that of Kira's own tables."""

    file, comment = "{}.m", ("(* ", " *)")
    own = frozenset({"C", "D", "E", "I", "K", "N", "O"})  # names of one letter that mean something there

    def brackets(self, family: str) -> tuple[str, str]:
        return f"G[{self.head(family)},{{", "}]"

    def body(self, sides: Iterable[tuple[str, list[str]]]) -> str:
        return "{\n" + ",\n".join(f"{left} -> \n" + "".join(f" + {term}\n" for term in terms) for left, terms in sides) + "}\n"

    def sides(self, body: str) -> Iterable[Sequence[str]]:
        return [part.split("->") for _, part in _split(body.strip().removeprefix("{").removesuffix("}"), ",")]

    def taken(self, symbols: Collection[str], combinations: Sequence[str], family: str, derivatives: bool) -> list[str]:
        return _not_plain(*symbols, *combinations) + sorted(self.own.intersection((*symbols, *combinations)))


class Kira(Mathematica):
    """A table as Kira writes it for Mathematica: family[indices]*(coefficient)."""

    file, combinations = "kira_{}.m", False

    def brackets(self, family: str) -> tuple[str, str]:
        return f"{self.head(family)}[", "]"

    def term(self, integral: str, coefficient: str) -> str:
        return f"{integral}*({coefficient.replace('**', '^')})"


class Form(Format):
    """id statements for family(indices), D(variable)*family(indices); quotients of polynomials are num(above)*den(below)."""

    file, comment, quotes = "{}.inc", ("* ", ""), "[]"

    def brackets(self, family: str) -> tuple[str, str]:
        return f"{self.head(family)}(", ")"

    def derivative(self, variable: str, integral: str) -> str:
        return f"D({variable})*{integral}"

    def factor(self, coefficient: str) -> str:
        if not re.search(r"[()]|/\s*[^\s0-9]", coefficient):  # all else FORM reads as it is
            return super().factor(coefficient)
        above, below = (part.replace("**", "^") for part in numerator_and_denominator(coefficient))
        return f"num({above})" + f"*den({below})" * (below != "1")

    def body(self, sides: Iterable[tuple[str, list[str]]]) -> str:
        return "".join(f"id {left} =\n" + "\n".join(f" + {term}" for term in terms) + ";\n" for left, terms in sides)

    def sides(self, body: str) -> Iterable[Sequence[str]]:
        return [part.strip().removeprefix("id ").split("=") for _, part in _split(body, ";")]

    def taken(self, symbols: Collection[str], combinations: Sequence[str], family: str, derivatives: bool) -> list[str]:
        own = {"num", "den"} | ({"D"} if derivatives else set())
        clash = own.intersection((*symbols, *combinations, family)) | {family}.intersection(symbols)
        return _not_plain(*symbols, *combinations) + sorted(clash)


class Sympy(Format):
    """A Python file with one dict of texts, G(indices) and DG(variable,indices)."""

    file, comment = "{}.py", ("# ", "")

    def brackets(self, family: str) -> tuple[str, str]:
        return "G(", ")"

    def factor(self, coefficient: str) -> str:
        return coefficient if coefficient.isdecimal() else f"({coefficient})"

    def body(self, sides: Iterable[tuple[str, list[str]]]) -> str:
        lines = ["reductions = {"]
        for left, terms in sides:
            lines += [f'    "{left}": (', *(f'        " + {term}"' for term in terms), "    ),"]
        return "\n".join([*lines, "}"]) + "\n"

    def sides(self, body: str) -> Iterable[Sequence[str]]:
        (assignment,) = ast.parse(body).body
        return ast.literal_eval(assignment.value).items()

    def taken(self, symbols: Collection[str], combinations: Sequence[str], family: str, derivatives: bool) -> list[str]:
        return [name for name in combinations if not (name.isidentifier() and name.isascii())]


class Json(Format):
    """One object: the header, and a list of rules with lists of terms."""

    file, reserved = "{}.json", None

    def text(self, header: dict[str, Any], rules: Iterable[Rule]) -> str:
        entries = [
            ({"variable": variable} if variable else {})
            | {"combination" if isinstance(target, str) else "integral": target}
            | {"terms": [{"integral": term, "coefficient": str(value)} for term, value in expression.items()]}
            for variable, target, expression in rules
        ]
        return f'{{"header": {json.dumps(header)},\n"reductions": [\n' + ",\n".join(map(json.dumps, entries)) + "\n]}\n"

    def rules(self, header: dict[str, Any], body: str) -> Iterator[tuple[str, Index | str, list[tuple[Index, str]]]]:
        for rule in json.loads(f'{{"header": 0,\n{body}')["reductions"]:
            target = rule["combination"] if "combination" in rule else tuple(rule["integral"])
            yield rule.get("variable", ""), target, [(tuple(term["integral"]), term["coefficient"]) for term in rule["terms"]]


class Latex(Format):
    """A line for each target, to be pasted into a paper; it is not read back."""

    file, comment, reserved = "{}.tex", ("% ", ""), None

    def brackets(self, family: str) -> tuple[str, str]:
        return f"I_{{{_upright(family)}}}(", ")"

    def label(self, combination: str) -> str:
        return _upright(combination)

    def derivative(self, variable: str, integral: str) -> str:
        return integral.replace("I_", "I^{(d-2)}_", 1) if variable == "d" else rf"\partial_{{{_tex_name(variable)}}} {integral}"

    def term(self, integral: str, coefficient: str) -> str:
        names = {name: _Tex(_tex_name(name), 2) for name in names_in(coefficient)}
        value = calculate(coefficient, names, lambda k: _Tex(str(k), 2), "coefficient") * _Tex(integral, 1)
        return re.sub("^(-?)1 (?=I_)", r"\1", str(value))

    def body(self, sides: Iterable[tuple[str, list[str]]]) -> str:
        return "".join(f"{left} = {' + '.join(terms).replace('+ -', '- ')}\n" for left, terms in sides)

    def sides(self, body: str) -> Iterable[Sequence[str]]:
        raise ValueError("latex is written only; export to another format, too")


@dataclass(frozen=True)
class _Tex:
    """Part of a coefficient in LaTeX. rank: of the text, 0 a sum, 1 a product, 2 what a power can follow; minus: a sign before it."""

    text: str
    rank: int
    minus: bool = False

    def __str__(self) -> str:
        return f"-{self.inside(1)}" if self.minus else self.text

    def inside(self, rank: int) -> str:
        """Without the sign, in parentheses where they are needed."""
        return self.text if self.rank >= rank else rf"\left({self.text}\right)"

    def __add__(self, other: _Tex) -> _Tex:
        right = str(other)
        return _Tex(f"{self} - {right[1:]}" if right.startswith("-") else f"{self} + {right}", 0)

    def __sub__(self, other: _Tex) -> _Tex:
        return self + -other

    def __neg__(self) -> _Tex:
        return _Tex(self.text, self.rank, not self.minus)

    def __mul__(self, other: _Tex) -> _Tex:
        right = other.inside(1)
        return _Tex(self.inside(1) + (r" \cdot " if right[0].isdigit() else " ") + right, 1, self.minus != other.minus)

    def __truediv__(self, other: _Tex) -> _Tex:
        return _Tex(rf"\frac{{{self.text}}}{{{other.text}}}", 1, self.minus != other.minus)

    def __pow__(self, power: int) -> _Tex:
        return _Tex(f"{f'({self})' if self.minus else self.inside(2)}^{{{power}}}", 1)


def _upright(name: str) -> str:
    return r"\mathrm{" + name.replace("_", r"\_").replace("-", r"\mbox{-}") + "}"


def _tex_name(name: str) -> str:
    """m2 as m_{2}, eps as a Greek letter, all longer names upright."""
    if name in ("eps", "ep", "epsilon"):
        return r"\epsilon"
    letter, number = re.fullmatch(r"(.*?)([0-9]*)", name).groups()
    return (letter if len(letter) == 1 else _upright(letter)) + (f"_{{{number}}}" if number else "")


FORMATS: dict[str, Format] = {form.__name__.lower(): form() for form in (Mathematica, Form, Kira, Json, Sympy, Latex)}


def parse_formats(texts: Iterable[str]) -> tuple[str, ...]:
    """Names of formats from the values of --export. Raises InputError."""
    names = [name.strip() for text in texts for name in text.split(",")]
    for name in names:
        if name not in FORMATS:
            raise InputError(f"--export {name!r}: unknown format; known: {', '.join(FORMATS)}")
    return tuple(dict.fromkeys(names))


def export_path(output: Path, name: str, expanded: bool = False) -> Path:
    """reduction.pkl gives reduction.m, kira_reduction.m, …; reduction_eps.m where the coefficients are expanded in eps."""
    return output.with_name(FORMATS[name].file.format(output.stem + "_eps" * expanded))


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
    result = record | {"reductions": texts(own["reductions"]), "truncated": about}
    del result["epsilon"]
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
    check_export_names(name, record["family"], names_in_coefficients(record) | set(matrices), targets_with_names(record), bool(matrices))
    return FORMATS[name].text(header, expressions_of(record))


def targets_with_names(record: dict[str, Any]) -> list[str]:
    return [target for target in record["reductions"] if isinstance(target, str)]


def check_export_names(
    name: str, family: str, symbols: Collection[str], combinations: Sequence[str] = (), derivatives: bool = False
) -> None:
    """Raises InputError where a format cannot hold what a result has, or a name in it would mean something else to who reads it.

    symbols: of the coefficients; combinations: names of targets, which become symbols; derivatives: whether it has differential equations.
    """
    own = FORMATS[name]
    if not own.combinations and (combinations or derivatives):
        others = [other for other, form in FORMATS.items() if form.combinations]
        able = f"goes to {', '.join(others[:-1])} or {others[-1]}"
        if derivatives:
            raise InputError(f"--export {name}: holds reductions only; a differential equation {able}")
        raise InputError(f"--export {name}: holds integrals only; the combination {combinations[0]} {able}")
    if own.reserved is not None and (clash := {*own.reserved, family, *symbols}.intersection(combinations)):
        raise InputError(f"--export {name}: {min(clash)} would be a combination and something else there; rename it, or export to json")
    if bad := own.taken(symbols, combinations, family, derivatives):
        others = "json" if name == "sympy" else "json or sympy"
        raise InputError(f"--export {name}: the name {bad[0]} is not free there; rename it in the family, or export to {others}")


def numerator_and_denominator(text: str) -> tuple[str, str]:
    """Texts of polynomials whose quotient the coefficient is, as it stands where it is a product, else brought together by sympy."""
    above, below = [], []
    if len(_split(text.lstrip("+- "), "+-")) == 1:
        for sign, factor in _split(text, "*/"):
            (below if sign == "/" else above).append(factor.strip())
    else:
        above.append(text)
    if any(re.search(r"/\s*[^\s0-9]|(\*\*|\^)\s*\(?\s*-", part) for part in (*above, *below)):
        from sympy import Integer, Symbol, fraction, together

        quotient = together(calculate(text, {name: Symbol(name) for name in names_in(text)}, Integer, "coefficient"))
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

    One of differential equations has 'differential_equation' with the 'matrices' of a result, too. Raises InputError where it is none.

    >>> import tempfile
    >>> record = {"family": "bubble", "prime": 1009, "d": 41, "kinematics": {"s": 7, "m": 3}, "reductions": {(2, 1): {(1, 1): 5}}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (path,) = write_exports(record, Path(folder, "r.pkl"), ["form"])
    ...     read_export(path)["reductions"]
    {(2, 1): {(1, 1): 5}}
    """
    where = f"export {path}"
    try:
        first, _, body = Path(path).read_text(encoding="utf-8").partition("\n")
        in_json = first.startswith('{"header": ')
        header = json.loads(first.removeprefix('{"header": ').removesuffix(",") if in_json else first.lstrip("(*#% ").removesuffix(" *)"))
        if header["program"] != "ibp_reduce" or header["format"] != EXPORT_FORMAT:
            raise ValueError("another program or format")
        modular = header["prime"] is not None
        matrices: dict[str, dict[Index, dict]] = {variable: {} for variable in ("", *header.get("variables", ()))}
        for variable, target, terms in FORMATS[header["export"]].rules(header, body):
            matrices[variable][target] = {term: _read_coefficient(c, modular) for term, c in terms}
        result = header | {"reductions": matrices.pop("")}
        return result | ({"differential_equation": {"matrices": matrices}} if matrices else {})
    except OSError as error:
        raise InputError(f"{where}: {error.strerror}") from None
    except (*UNREADABLE, SyntaxError) as error:
        raise InputError(f"{where}: not readable ({in_short(error)})") from None


def _read_coefficient(text: str, modular: bool) -> int | Fraction | str:
    text = text.strip().replace("^", "**")
    if match := re.fullmatch(r"num(\(.*?\))(?:\*den(\(.*\)))?", text, re.DOTALL):
        text = match[1] if match[2] is None else f"{match[1]}/{match[2]}"
    text = _without_parentheses(text)
    if modular:
        return int(text)
    return Fraction(text) if re.fullmatch(r"-?[0-9]{1,100000}(/0*[1-9][0-9]*)?", text) else text
