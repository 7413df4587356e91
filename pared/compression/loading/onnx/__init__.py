"""ONNX files as TorchScript: read and checked, written anew operator by operator, and compared with onnxruntime."""

from pared.compression.loading.onnx.opening import load_onnx

__all__ = ["load_onnx"]
