"""Runs in a process of its own, with onnxruntime-training first on the path: forward on standard input, gradient on standard output.

Not imported anywhere. Arguments: the folder of the package. Input: one line of JSON {"loss": name, "by": [names]}, then the model.
"""

import json
import sys


def main() -> None:
    """Answer one request; the process ends with the builder's own message where it refuses."""
    sys.path.insert(0, sys.argv[1])
    from onnxruntime.capi._pybind_state import GradientGraphBuilder

    asked = json.loads(sys.stdin.buffer.readline())
    try:
        builder = GradientGraphBuilder(sys.stdin.buffer.read(), {asked["loss"]}, set(asked["by"]), asked["loss"])
        builder.build()
    except RuntimeError as error:
        sys.exit(f"refused: {error}")
    sys.stdout.buffer.write(builder.get_model())


if __name__ == "__main__":
    main()
