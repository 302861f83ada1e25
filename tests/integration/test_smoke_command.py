"""modelpack smoke: the third step of verify alone, on a model of the store or on a file."""

import json
from xml.etree import ElementTree

import pytest

from modelpack import schemas

pytestmark = pytest.mark.llama

ONE_THREAD = ("--device", "cpu", "--threads", "1")


def test_a_file_is_asked_and_reported_on(modelpack, tiny_gguf, tmp_path):
    suite = tmp_path / "suite.toml"
    suite.write_text(
        'schema = 1\n[[case]]\nname = "tokyo"\nprompt = "The quick brown"\nmax_tokens = 8\n'
        'expect = {contains = "fox"}\n[[case]]\nname = "wrong"\nprompt = "The quick brown"\nmax_tokens = 8\n'
        'expect = {contains = "<hen & egg>"}\n'
    )

    result = modelpack(
        "smoke", tiny_gguf, "--smoke", suite, *ONE_THREAD, "--json",
        *("--report", tmp_path / "report.json", "--junit", tmp_path / "smoke.xml"),
    )  # fmt: skip

    assert result.code == 7
    answer = result.json("smoke")
    assert answer["digest"] is None
    assert schemas.violations("smoke-report", answer["smoke"]) == []
    assert json.loads((tmp_path / "report.json").read_text()) == answer["smoke"]
    suite_of_cases = ElementTree.parse(tmp_path / "smoke.xml").getroot()
    assert suite_of_cases.attrib == {
        "name": str(tiny_gguf), "tests": "2", "failures": "1", "skipped": "0", "errors": "0",
    }  # fmt: skip
    failed = suite_of_cases.find("testcase[@name='wrong']/failure")
    assert failed is not None
    assert "<hen & egg>" in failed.attrib["message"]


def test_a_stored_model_is_asked_and_the_result_is_signed(modelpack, tiny_checkpoint, key_pair):
    assert modelpack("build", tiny_checkpoint, "-t", "demo/tiny:v1", "--quant", "F16").code == 0

    result = modelpack(
        "smoke", "demo/tiny:v1", *ONE_THREAD, "--attest", key_pair[0], "--json", env={"MODELPACK_PASSWORD": ""}
    )

    assert result.code == 0, result.stderr
    assert result.json("smoke")["attested"]["result"] == "PASSED"
    kinds = [one["kind"] for one in modelpack("tree", "demo/tiny:v1", "--json").json("tree")["attached"]]
    assert kinds == ["attestation"]


def test_a_file_that_is_no_model_is_an_error(modelpack, tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(33))

    assert modelpack("smoke", tmp_path / "broken.gguf").code == 1
    assert modelpack("smoke", tmp_path / "absent.gguf").code == 3
    assert modelpack("smoke", tmp_path / "broken.gguf", "--attest", "any.key").code == 2
