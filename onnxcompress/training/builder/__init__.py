"""The second source of gradients: onnxruntime-training's builder, in a short-lived process of its own.

`place` sets its package up beside the one that everything else runs on, and asks it; `forward` writes the part of a graph that a
gradient goes through in operators that it knows; `backward` writes its answer in operators that stock onnxruntime runs, by the same
lowering that our derivative table uses. `worker` is the other process.
"""
