"""What is known of operators: the signature table, the flows, the layer view, and the record of labels that they write."""

from onnxcompress.operators.flow import Flow, Settings
from onnxcompress.operators.flows import FLOWS
from onnxcompress.operators.follow import follow
from onnxcompress.operators.signatures import SIGNATURES, case_of
from onnxcompress.operators.ties import ROLES, Reason, Site, Ties, Track

__all__ = ["FLOWS", "ROLES", "SIGNATURES", "Flow", "Reason", "Settings", "Site", "Ties", "Track", "case_of", "follow"]
