"""Tests of operation kinds and counts."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import counting, operations


@pytest.mark.parametrize(
    "function, expected",
    [
        (lambda x: x @ x, {operations.PRODUCTS}),
        (lambda x: jnp.concatenate([x, x.T], 1), {operations.COPIES}),
        (lambda x: jnp.tanh(x).sum(0), {operations.REST}),
        (lambda x: jnp.pad(jnp.exp(x) @ x, 1), {*operations.KINDS}),
    ],
)
def test_kinds_of_a_compiled_program(function, expected):
    program = jax.jit(function).lower(jnp.ones((64, 64))).compile().as_text()
    kinds = operations.of_program(program)
    entry = program.split("ENTRY")[1]
    top = {kind for name, kind in kinds.items() if f"%{name} = " in entry or f" {name} = " in entry}
    copies = {operations.COPIES}  # parameters, and copies that the compiler adds
    assert top | copies == expected | copies


def test_fusion_with_a_product_is_a_product():
    program = """
%fused (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %dot.1 = f32[8,8]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %tanh.1 = f32[8,8]{1,0} tanh(%dot.1)
}

%moved (q: f32[8,8]) -> f32[8,8] {
  %q = f32[8,8]{1,0} parameter(0)
  ROOT %transpose.1 = f32[8,8]{1,0} transpose(%q), dimensions={1,0}
}

ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  %a = f32[8,8]{1,0} fusion(%x), kind=kCustom, calls=%fused
  %b = f32[8,8]{1,0} fusion(%a), kind=kLoop, calls=%moved
  ROOT %c = f32[8,8]{1,0} add(%a, %b)
}
"""
    kinds = operations.of_program(program)
    assert [kinds[name] for name in "abc"] == list(operations.KINDS)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("aten::convolution_backward", operations.PRODUCTS),
        ("aten::mkldnn_convolution", operations.PRODUCTS),
        ("aten::addmm", operations.PRODUCTS),
        ("aten::mm", operations.PRODUCTS),
        ("aten::copy_", operations.COPIES),
        ("aten::cat", operations.COPIES),
        ("aten::native_batch_norm_backward", operations.REST),
        ("aten::leaky_relu_", operations.REST),
        ("aten::_fused_adam_", operations.REST),
        ("autograd::engine::evaluate_function: ConvolutionBackward0", operations.REST),
    ],
)
def test_kinds_of_pytorch_operations(name, kind):
    assert operations.of_torch(name) == kind


@pytest.mark.parametrize(
    "name, kind",
    [
        ("sm90_xmma_dgrad_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc__5x_cudnn", "products"),
        ("void convolve_common_engine_float_NHWC<__nv_bfloat16, __nv_bfloat16, 128>", "products"),
        ("nvjet_sm90_tst_64x160_64x7_1x2_h_bz_relubias_NNT", "products"),
        ("gemm_fusion_dot_770", "products"),
        ("void cudnn::engines_precompiled::nchwToNhwcKernel<__nv_bfloat16>", "copies"),
        ("void nhwcAddPaddingKernel<__nv_bfloat16, __nv_bfloat16, float>", "copies"),
        ("loop_pad_fusion_12", "copies"),
        ("input_concatenate_fusion_7", "copies"),
        ("Memset 3", "copies"),
        ("loop_select_fusion_6", "the rest"),
        ("input_add_reduce_fusion_26", "the rest"),
        ("loop_convert_fusion_19", "the rest"),
    ],
)
def test_kinds_of_gpu_kernels(name, kind):
    assert operations.of_gpu(name) == kind


def test_operations_are_counted_once():
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    assert counting.flops(lambda x: x @ x, x) == 2 * 64**3
    assert counting.flops(lambda x: (x @ x) * jnp.exp(x @ x), x) < 2.1 * 64**3
