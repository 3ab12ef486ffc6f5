"""The table of published weights against the networks it describes, and the page made from it."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from mtkd import catalog
from mtkd.contracts import MtkdError
from mtkd.zoo import ENTRIES, docs, entry

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"


@pytest.mark.parametrize("name", ENTRIES)
def test_the_described_network_has_the_published_number_of_parameters(name: str) -> None:
    item = ENTRIES[name]
    # The large networks cost seconds to fill with random numbers; SwinIR computes its masks, which needs real memory.
    with torch.device("cpu" if item.arch == "SwinIR" else "meta"):
        net = catalog.get("arch", item.arch)(**item.args)
    assert sum(parameter.numel() for parameter in net.parameters()) == item.params
    assert getattr(net, "scale", None) == item.scale


@pytest.mark.parametrize("item", ENTRIES.values(), ids=ENTRIES)
def test_sources_are_well_formed(item) -> None:
    assert bool(item.sources) != item.shipped
    for source in item.sources:
        assert urlsplit(source.url).scheme == "https"
        assert source.sha256 is None or re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{64}", source.sha256)
        assert bool(source.sha256) == bool(source.sha256_from)
        if source.sha256 and len(source.sha256) == 8:
            assert source.sha256 in source.file, "a short hash is the one in the file name"
        # Share links of Google and of Heidelberg's university carry a number and no name.
        if not re.search(r"//drive\.|//heibox\.", source.url):
            assert source.file in source.url
    assert len({source.url for source in item.sources}) == len(item.sources)


def test_no_two_entries_share_a_file_unless_it_is_an_archive() -> None:
    files = [source.file for item in ENTRIES.values() for source in item.sources if source.member is None]
    assert len(files) == len(set(files))


@pytest.mark.parametrize("family", ["edsr_m", "edsr_l", "rcan", "swinir_m_div2k", "swinir_m_df2k", "swinir_s"])
def test_every_family_has_every_scale(family: str) -> None:
    assert [f"{family}_x{scale}" in ENTRIES for scale in (2, 3, 4)] == [True] * 3


def test_files_that_the_publishers_name_by_data_agree_with_the_table() -> None:
    for item in ENTRIES.values():
        named = re.search(r"DIV2K|DF2K", " ".join(source.file for source in item.sources))
        assert named is None or named[0] == item.data


def test_a_name_may_carry_the_prefix_of_option_files() -> None:
    assert entry("zoo:rcan_x4") is entry("rcan_x4") is ENTRIES["rcan_x4"]


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(MtkdError, match="rcan_x4"):
        entry("RCANx4".lower())


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == docs.page(), "run: python -m mtkd.zoo.docs > docs/zoo.md"
