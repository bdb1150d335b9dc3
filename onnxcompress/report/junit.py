"""A Page as JUnit's XML, which CI systems show test by test: one case a budget, or a finding."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from onnxcompress.report.parts import Page

NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write."""


def junit(page: Page) -> str:
    """One suite; a case that has a fault is a failure."""
    faults = sum(bool(case.fault) for case in page.cases)
    counts = {"tests": str(len(page.cases)), "failures": str(faults), "errors": "0"}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": f"onnxcompress {_safe(page.title)}", **counts})
    for case in page.cases:
        each = ElementTree.SubElement(
            suite, "testcase", {"classname": f"onnxcompress.{_safe(page.title)}", "name": _safe(case.name)}
        )
        if case.fault:
            ElementTree.SubElement(each, "failure", {"message": _safe(case.fault)}).text = _safe(page.headline)
        elif case.more:
            ElementTree.SubElement(each, "system-out").text = _safe(case.more)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _safe(text: str) -> str:
    return NOT_XML.sub("\ufffd", text)
