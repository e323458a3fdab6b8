from __future__ import annotations

import numpy as np
import pytest
import torch

from algoperf_torch.kernels.farmhash import category_ids, fused, reference

SIZES = [39884406, 39043, 3, 1, 2**40, 2**62, 10, 7, 36, 1543, 4, 976]  # two-digit columns included


def words(rows: int, columns: int) -> torch.Tensor:
    bits = np.random.RandomState(0).randint(0, 2**64, size=(rows, columns), dtype=np.uint64)
    return torch.from_numpy(bits.view(np.int64))


@pytest.mark.parametrize("rows", [1, 63, 200])
def test_kernel_agrees_with_reference(device, rows):
    given, sizes = words(rows, len(SIZES)).to(device), torch.tensor(SIZES, device=device)
    actual = fused.category_ids(given, sizes)
    assert torch.equal(actual, reference.category_ids(given, sizes))
    assert (actual >= 0).all()
    assert (actual < sizes).all()


def test_reference_is_the_hash_of_the_prepared_data():
    from algoperf_torch.workloads.criteo1tb import records

    given = words(50, 26)
    actual = category_ids(given, torch.tensor(records.VOCABULARY_SIZES))
    for columns in (range(10), range(10, 26)):
        part = slice(columns.start, columns.stop)
        expected = records.category_ids(given[:, part].numpy().view(np.uint64), columns)
        assert actual[:, part].tolist() == expected.tolist()


def test_operator():
    given, sizes = words(5, 3), torch.tensor([5, 7, 9])
    torch.library.opcheck(category_ids, (given, sizes))
    compiled = torch.compile(category_ids, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(given, sizes), category_ids(given, sizes))
