"""onnxruntime and the machine below it: sessions (made only in session.py), clock, profiler, CPU."""
