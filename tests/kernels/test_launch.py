"""The table of addresses: what it holds, and that whatever a user replaces is noticed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf_torch.errors import UsageError
from algoperf_torch.kernels import launch
from algoperf_torch.kernels.launch import BLOCK, TensorTable, is_dense


def make_params(*shapes: tuple[int, ...], device: torch.device) -> tuple[torch.nn.Parameter, ...]:
    params = tuple(torch.nn.Parameter(torch.randn(shape, device=device)) for shape in shapes)
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def pointed_at(table: TensorTable) -> list[list[int]]:
    return table.pointers.tolist()


def addresses(*columns) -> list[list[int]]:
    return [[tensor.data_ptr() for tensor in column] for column in columns]


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(0, 3 * BLOCK + 1), max_size=20))
def test_chunks_cover_every_element_once(sizes):
    tensors = [torch.zeros(size) for size in sizes]
    table = TensorTable().refresh(tensors)
    covered = [0] * len(sizes)
    for program, (tensor, block, count, code) in enumerate(table.chunks.tolist()):
        assert block * BLOCK == covered[tensor]
        assert 0 < count <= BLOCK
        assert code == 0
        assert table.first_chunk[tensor] <= program < table.first_chunk[tensor + 1]
        covered[tensor] += count
    assert covered == sizes
    assert table.num_programs == table.first_chunk[-1]


def test_codes_say_which_column_is_bfloat16():
    params = [torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3)]
    grads = [torch.zeros(3), torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16)]
    table = TensorTable().refresh(params, grads)
    assert table.codes == (0, 1, 2)
    assert table.chunks[:, 3].tolist() == [0, 1, 2]


@pytest.mark.parametrize("persistent", [False, True])
class TestWhatAUserReplaces:
    @pytest.fixture
    def params(self, device):
        return make_params((3,), (5, 7), (2100,), device=device)

    @pytest.fixture
    def states(self, params):
        return tuple(torch.zeros_like(param) for param in params)

    @pytest.fixture
    def steps(self, params, device):
        return tuple(torch.ones((), device=device) for _ in params)

    def refresh(self, table, params, states, steps):
        return table.refresh(params, launch.gradients(params), states, extras=(steps,))

    @pytest.fixture
    def table(self, persistent, params, states, steps):
        return self.refresh(TensorTable(persistent=persistent), params, states, steps)

    def expect(self, table, params, states, steps):
        table = self.refresh(table, params, states, steps)
        assert pointed_at(table) == addresses(params, launch.gradients(params), states, steps)
        return table

    def test_nothing(self, table, params, states, steps):
        chunks = table.chunks
        self.expect(table, params, states, steps)
        assert table.chunks is chunks, "an unchanged table was planned again"

    def test_the_data_of_a_parameter(self, table, params, states, steps):
        params[1].data = params[1].data.clone()
        self.expect(table, params, states, steps)

    def test_a_gradient(self, table, params, states, steps):
        params[2].grad = params[2].grad.clone()
        self.expect(table, params, states, steps)

    def test_all_gradients_over_many_steps(self, table, params, states, steps):
        held = []
        for _ in range(5):
            for param in params:
                held.append(param.grad)
                param.grad = torch.randn_like(param)
            self.expect(table, params, states, steps)

    def test_the_shape_of_a_parameter(self, table, params, states, steps):
        params[2].data = params[2].data[:100].clone()
        params[2].grad = torch.ones_like(params[2])
        states = (*states[:2], torch.zeros(100, device=states[0].device))
        table = self.expect(table, params, states, steps)
        assert table.chunks.tolist()[-1] == [2, 0, 100, 0]

    def test_the_dtype_of_a_parameter(self, table, params, states, steps):
        params[0].data = params[0].data.bfloat16()
        params[0].grad = torch.ones_like(params[0])
        assert self.expect(table, params, states, steps).codes == (0, 3)

    def test_states_that_were_loaded(self, table, params, states, steps):
        states = tuple(state.clone() for state in states)
        self.expect(table, params, states, steps)

    def test_step_counters(self, table, params, states, steps):
        self.expect(table, params, states, tuple(step.clone() for step in steps))

    def test_the_list_of_parameters(self, table, params, states, steps):
        self.expect(table, params[1:], states[1:], steps[1:])
        self.expect(table, params, states, steps)


def test_data_of_a_gradient_is_noticed_unless_persistence_was_promised(device):
    (param,) = make_params((5,), device=device)
    table = TensorTable().refresh((param,), (param.grad,))
    param.grad.data = torch.ones(5, device=device)
    assert pointed_at(table.refresh((param,), (param.grad,))) == addresses([param], [param.grad])


def test_gradients_are_not_kept_alive_unless_persistent(device):
    import weakref

    (param,) = make_params((5,), device=device)
    table = TensorTable().refresh((param,), launch.gradients((param,)))
    grad = weakref.ref(param.grad)
    param.grad = None
    assert grad() is None
    assert table.num_programs == 1


@pytest.mark.parametrize("persistent", [False, True])
def test_gradients_laid_out_differently_are_copied(device, persistent):
    param = torch.randn(4, 6, device=device)
    grads = [
        torch.randn(6, 4, device=device).t(),
        torch.randn(4, 12, device=device)[:, ::2],
        torch.randn(4, 1, device=device).expand(4, 6),
    ]
    table = TensorTable(persistent=persistent)
    for grad in grads:
        table.refresh([param], [grad])
        copied = table._conformed[0]
        assert pointed_at(table)[1] == [copied.data_ptr()]
        assert copied.stride() == param.stride()
        torch.testing.assert_close(copied, grad)


def test_strides_of_dimensions_of_size_one_do_not_matter(device):
    param = torch.zeros(8, 4, 1, 1, device=device)
    grad = torch.zeros(8, 4, 1, 1, device=device).contiguous(memory_format=torch.channels_last)
    table = TensorTable().refresh([param], [grad])
    assert pointed_at(table) == addresses([param], [grad])


def test_channels_last_parameters_are_dense(device):
    param = torch.zeros(8, 4, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    table = TensorTable().refresh([param], [torch.zeros_like(param)])
    assert table.num_programs == 1


@pytest.mark.parametrize(
    ("tensor", "dense"),
    [
        (torch.zeros(()), True),
        (torch.zeros(0, 3), True),
        (torch.zeros(4, 5).t(), True),
        (torch.zeros(2, 3, 4).permute(2, 0, 1), True),
        (torch.zeros(4, 5)[:, :3], False),
        (torch.zeros(4, 1).expand(4, 3), False),
        (torch.zeros(10)[3:], True),
    ],
)
def test_dense(tensor, dense):
    assert is_dense(tensor) is dense


class TestRefused:
    def test_parameters_with_gaps(self):
        with pytest.raises(UsageError, match="Parameter 1 is not dense"):
            TensorTable().refresh([torch.zeros(3), torch.zeros(4, 5)[:, :3]])

    def test_dtypes_without_a_kernel(self):
        with pytest.raises(UsageError, match=r"Tensor 0 is torch.float16.*reference"):
            TensorTable().refresh([torch.zeros(3, dtype=torch.float16)])

    def test_state_laid_out_differently(self):
        params, grads = [torch.zeros(4, 6)], [torch.zeros(4, 6)]
        with pytest.raises(UsageError, match="zeros_like"):
            TensorTable().refresh(params, grads, [torch.zeros(6, 4).t()])

    def test_columns_of_different_length(self):
        with pytest.raises(ValueError, match="equally long"):
            TensorTable().refresh([torch.zeros(3)], [])

    def test_shapes_that_differ(self):
        with pytest.raises(ValueError, match=r"\(4,\) on cpu beside \(3,\)"):
            TensorTable().refresh([torch.zeros(3)], [torch.zeros(4)])

    @pytest.mark.parametrize("step", [torch.ones(8)[::2], torch.ones((), dtype=torch.float64)])
    def test_extras_that_no_kernel_can_read(self, step):
        with pytest.raises(ValueError, match="Must be contiguous float32"):
            TensorTable().refresh([torch.zeros(3)], extras=([step],))


def test_shared_tables_are_found_again_and_forgotten():
    many = [[torch.zeros(3)] for _ in range(40)]
    tables = [launch.refreshed(None, params) for params in many]
    assert launch.refreshed(None, many[-1]) is tables[-1]
    assert launch.refreshed(None, many[0]) is not tables[0]


def test_scalars_are_put_beside_the_tensors(device):
    params = [torch.zeros(3, device=device)]
    held = torch.tensor(0.1, device=device)
    assert launch.beside(held, params) is held
    assert launch.beside(0.5, params).item() == 0.5
    assert launch.beside(0.5, params).device == params[0].device


def test_a_launch_without_programs_is_left_out():
    launch.launch(None, (0,), torch.zeros(1))
