"""A smoke report as JUnit's XML, in the dialect that Jenkins, GitLab and GitHub's actions read (testmoapp/junitxml)."""

from xml.etree import ElementTree

from modelpack.smoke.report import SmokeReport


def to_junit(report: SmokeReport, *, name: str) -> bytes:
    """One ``testcase`` per case. What a model answered goes in as ``system-out``; a warning does not fail its case.

    A run that ended before its cases did (a crash, a model that does not load) is an ``error`` of a case of its own.
    """
    suite = ElementTree.Element("testsuite", name=_text(name))
    for case in report.cases:
        seconds = f"{case.seconds or 0:.3f}"
        element = ElementTree.SubElement(suite, "testcase", classname="smoke", name=_text(case.name), time=seconds)
        why = _text("; ".join(case.why))
        if case.verdict == "FAIL":
            ElementTree.SubElement(element, "failure", message=why)
        elif case.verdict == "SKIP":
            ElementTree.SubElement(element, "skipped", message=why)
        said = [f"warning: {why}"] if case.verdict == "WARN" else []
        said += [_text(case.answer)] if case.answer else []
        if said:
            ElementTree.SubElement(element, "system-out").text = "\n".join(said)
    if report.error:
        ended = ElementTree.SubElement(suite, "testcase", classname="smoke", name=report.outcome, time="0.000")
        ElementTree.SubElement(ended, "error", message=_text(report.error.splitlines()[0])).text = _text(report.error)
    counts = {
        "tests": len(suite),
        "failures": report.count("FAIL"),
        "skipped": report.count("SKIP"),
        "errors": int(bool(report.error)),
    }
    for key, value in counts.items():
        suite.set(key, str(value))
    xml: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return xml


def _text(said: str) -> str:
    """XML has no way to write most control characters, and a model may say any."""
    return "".join(one if one.isprintable() or one in "\n\t" else "�" for one in said)
