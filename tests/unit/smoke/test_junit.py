"""Smoke reports as JUnit's XML."""

from xml.etree import ElementTree

from modelpack.smoke.junit import to_junit
from modelpack.smoke.report import CaseResult, SmokeReport


def test_every_verdict_has_its_element_and_is_counted():
    cases = (
        CaseResult("good", "PASS", answer="yes\x1b[31m & <no>", seconds=1.25),
        CaseResult("odd", "WARN", ("it was cut off",)),
        CaseResult("bad", "FAIL", ("expected 'a'", "expected 'b'")),
        CaseResult("left", "SKIP", ("llama.cpp had ended",)),
    )

    root = ElementTree.fromstring(to_junit(SmokeReport("crashed", cases, error="SIGSEGV\nthe log"), name="team/m:v1"))

    assert root.attrib == {"name": "team/m:v1", "tests": "5", "failures": "1", "skipped": "1", "errors": "1"}
    elements = {case.attrib["name"]: case for case in root}
    assert elements["good"].attrib["time"] == "1.250"
    assert elements["good"].findtext("system-out") == "yes�[31m & <no>"
    assert elements["odd"].findtext("system-out") == "warning: it was cut off"
    assert [child.tag for child in elements["bad"]] == ["failure"]
    assert elements["bad"][0].attrib["message"] == "expected 'a'; expected 'b'"
    assert [child.tag for child in elements["left"]] == ["skipped"]
    assert elements["crashed"].findtext("error") == "SIGSEGV\nthe log"
