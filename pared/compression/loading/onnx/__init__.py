"""ONNX files as TorchScript: read and checked, written anew operator by operator, and compared with onnxruntime."""

from pared.compression.loading.onnx.opening import form_of, load_onnx

__all__ = ["form_of", "load_onnx"]
