"""``python -m onnxcompress`` is the command ``onnxcompress``."""

from onnxcompress.cli.app import main

if __name__ == "__main__":
    main()
