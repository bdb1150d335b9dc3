"""Renders a Report, an Inspection, a Checkup, a Benchmark or a Packing; computes nothing.

page.py says what is shown (parts.py: of what a page is made); terminal.py, markdown.py, html.py and junit.py say how.
"""

from onnxcompress.report.html import html
from onnxcompress.report.junit import junit
from onnxcompress.report.markdown import markdown
from onnxcompress.report.page import benchmark_page, checkup_page, inspection_page, packing_page, report_page
from onnxcompress.report.parts import Page, Table
from onnxcompress.report.terminal import print_page

__all__ = [
    "Page",
    "Table",
    "benchmark_page",
    "checkup_page",
    "html",
    "inspection_page",
    "junit",
    "markdown",
    "packing_page",
    "print_page",
    "report_page",
]
