"""Parsing of click-log lines: golden lines, a slow parser, and every kind of bad record."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf_torch.errors import DataError
from algoperf_torch.workloads.criteo1tb.records import VOCABULARY_SIZES, fingerprint64, parse_block


def test_golden_lines(metric_vectors):
    text = "".join(line + "\n" for line in metric_vectors.json["criteo_lines"])
    labels, inputs = parse_block(text.encode())
    arrays = metric_vectors.arrays
    np.testing.assert_array_equal(labels, arrays["criteo_raw_labels"][:, 0])
    np.testing.assert_allclose(inputs[:, :13], arrays["criteo_raw_inputs"][:, :13], rtol=2e-7)
    np.testing.assert_array_equal(inputs[:, 13:], arrays["criteo_raw_inputs"][:, 13:])
    np.testing.assert_array_equal(inputs[:, 13:], arrays["criteo_raw_ids_int"].astype(np.float32))
    np.testing.assert_array_equal(inputs[:, 13:].astype(np.int64) % 4_194_304, arrays["criteo_raw_rows"])
    assert (inputs[:, 13:] != arrays["criteo_raw_ids_int"]).any()  # ids above 2^24 are rounded


def test_golden_fingerprints(metric_vectors):
    for key, value in metric_vectors.json["fingerprint64"].items():
        text = key.encode()
        if 8 <= len(text) <= 16:
            first, last = np.frombuffer(text[:8], "<u8"), np.frombuffer(text[-8:], "<u8")
            assert int(fingerprint64(first, last, len(text))[0]) == int(value), key


integer_fields = st.one_of(
    st.just(""), st.just("-1"), st.just("0"), st.integers(-50, 50).map(str), st.integers(0, 10**12).map(str)
)
category_fields = st.one_of(st.just(""), st.integers(0, 2**32 - 1).map("{:08x}".format))
records = st.tuples(
    st.sampled_from("01"),
    st.lists(integer_fields, min_size=13, max_size=13),
    st.lists(category_fields, min_size=26, max_size=26),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(records, min_size=1, max_size=5))
def test_agrees_with_a_slow_parser(rows):
    text = "".join("\t".join([label, *integers, *categories]) + "\n" for label, integers, categories in rows)
    labels, inputs = parse_block(text.encode())
    assert labels.tolist() == [int(label) for label, _, _ in rows]
    for found, (_, integers, categories) in zip(inputs, rows, strict=True):
        values = [max(int(field or 0), 0) for field in integers]
        expected = np.log(np.array(values, dtype=np.float32) + np.float32(1))
        np.testing.assert_allclose(found[:13], expected, rtol=2e-7)
        ids = [slow_id(field or "00000000", column) for column, field in enumerate(categories)]
        np.testing.assert_array_equal(found[13:], np.array(ids, dtype=np.float32))


def slow_id(field, column):
    """FarmHash Fingerprint64 in Python integers."""
    key, mask = f"{field}{column}".encode(), 2**64 - 1
    k2 = 0x9AE16A3B2F90404F
    mul = k2 + 2 * len(key)

    def rot(value, bits):
        return (value >> bits | value << (64 - bits)) & mask

    a = (int.from_bytes(key[:8], "little") + k2) & mask
    b = int.from_bytes(key[-8:], "little")
    c = (rot(b, 37) * mul + a) & mask
    d = ((rot(a, 25) + b) * mul) & mask
    x = ((c ^ d) * mul) & mask
    x ^= x >> 47
    y = ((d ^ x) * mul) & mask
    y ^= y >> 47
    return (y * mul & mask) % VOCABULARY_SIZES[column]


GOOD = "\t".join(["0", *["7"] * 13, *["0badc0de"] * 26])


def with_field(column, text):
    fields = GOOD.split("\t")
    fields[column] = text
    return "\t".join(fields)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD + "\t", "line 12 has 41 columns, expected 40"),
        (GOOD.rsplit("\t", 1)[0], "line 12 has 39 columns"),
        ("", "line 12 has 1 columns"),
        (with_field(0, "2"), "line 12 has the label '2'"),
        (with_field(0, ""), "line 12 has the label ''"),
        (with_field(0, "01"), "line 12 has the label '01'"),
        (with_field(3, "12a"), "'12a' in column 4, expected an integer"),
        (with_field(13, "1.5"), "'1.5' in column 14"),
        (with_field(5, "-"), "'-' in column 6"),
        (with_field(5, "--3"), "'--3' in column 6"),
        (with_field(5, " 3"), "' 3' in column 6"),
        (with_field(5, "9" * 19), "in column 6, expected an integer"),
        (with_field(14, "abc"), "'abc' in column 15, expected 8 characters"),
        (with_field(39, "0badc0de1"), "'0badc0de1' in column 40"),
        (with_field(20, "0badc0dé"), "line 12 holds the byte 0xc3, not ASCII"),
    ],
)
def test_bad_record(line, message):
    text = f"{GOOD}\n{line}\n{GOOD}\n".encode()
    with pytest.raises(DataError, match="raw/day_3: .*" + message.replace("(", r"\(")):
        parse_block(text, "raw/day_3", first_line=11)


def test_incomplete_last_line():
    with pytest.raises(DataError, match="line 2 is not complete"):
        parse_block(f"{GOOD}\n{GOOD}".encode())


def test_no_lines():
    labels, inputs = parse_block(b"")
    assert labels.shape == (0,)
    assert inputs.shape == (0, 39)
