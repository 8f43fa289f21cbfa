"""What a person sees."""

from types import SimpleNamespace

from ibp.console import Progress


def test_progress_of_long_searches_is_told():
    said, progress = [], Progress()
    progress.bar = SimpleNamespace(set_postfix_str=lambda text, refresh: said.append(text), update=said.append)
    progress.advance({"integrals": 1234, "references": 2000, "rules": 5, "searches": 6789})
    assert said == ["1,234 integrals, 766 hits, 5 new rules, 6,789 searches", 1]
