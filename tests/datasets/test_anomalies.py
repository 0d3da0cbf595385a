"""Anomaly sets by name: what is packaged, and files found by their table."""

import numpy as np
import pytest

from spanwise.datasets import load_anomalies, source_of
from spanwise.datasets.anomalies import ANOMALIES


def test_packaged_sets_have_the_rare_class_marked():
    digit = load_anomalies("digit-3")
    assert digit.X.shape == (1797, 64)
    assert digit.X.dtype == np.float64
    assert (~digit.y).sum() == 183
    tumours = load_anomalies("breast-cancer")
    assert (len(tumours), int(tumours.y.sum())) == (569, 212)
    assert digit.digest == load_anomalies("digit-3").digest != load_anomalies("digit-4").digest


def test_files_are_read_below_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPANWISE_DATA", str(tmp_path))
    (tmp_path / "adbench").mkdir()
    X = np.arange(6, dtype=np.uint8).reshape(3, 2)
    np.savez(tmp_path / "adbench" / "45_wine.npz", X=X, y=np.array([0, 1, 0]))
    found = load_anomalies("wine")
    np.testing.assert_array_equal(found.X, X)
    assert found.X.dtype == np.float64
    assert found.y.tolist() == [False, True, False]


def test_sets_of_one_source_are_known():
    assert source_of("satimage-2") == source_of("landsat")
    assert source_of("digit-3") == source_of("optdigits")
    assert source_of("glass") == "glass"


def test_there_are_37_of_adbench_and_11_packaged():
    assert len(ANOMALIES) == 48


@pytest.mark.bad_input
def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(ValueError, match=r"unknown set 'wines'\. Did you mean 'wine'"):
        load_anomalies("wines")
