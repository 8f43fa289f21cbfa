"""report."""

import pytest
from support_explorer import check_page


def test_report_is_one_page(undisturbed):
    pytest.importorskip("matplotlib")
    text = (undisturbed[0].parent / "out here" / "report.html").read_text()
    page = check_page(text)
    assert page.tags.count("img") >= 5 and page.tags.count("tr") > 14 and "margin" in text and "--n-initial" in text
