"""Which channels go together, and the edits that carry them out."""

from onnxcompress.channels.analyse import Channels, Frozen, Group, Member, analyse
from onnxcompress.channels.edit import cut, zero

__all__ = ["Channels", "Frozen", "Group", "Member", "analyse", "cut", "zero"]
