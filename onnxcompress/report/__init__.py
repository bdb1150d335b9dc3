"""Renders a Report, an Inspection, a Checkup or a Benchmark; computes nothing.

page.py says what is shown; terminal.py and markdown.py say how
"""

from onnxcompress.report.markdown import markdown
from onnxcompress.report.page import Page, Table, benchmark_page, checkup_page, inspection_page, report_page
from onnxcompress.report.terminal import print_page

__all__ = [
    "Page",
    "Table",
    "benchmark_page",
    "checkup_page",
    "inspection_page",
    "markdown",
    "print_page",
    "report_page",
]
