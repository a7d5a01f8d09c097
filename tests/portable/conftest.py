import pytest


@pytest.fixture
def onnx_runtime():
    pytest.importorskip("onnx", reason="requirements-export.txt is not installed")
    return pytest.importorskip("onnxruntime", reason="requirements-export.txt is not installed")
