"""JUnit XML, `junit.xml`, for the test reports of Jenkins, GitLab and the like.

There is no one standard. This is what is common to the schema of Jenkins' xUnit plugin
(junit-10.xsd, which pytest also writes) and to what GitLab reads: the two know a case by
`classname` and `name`, which therefore name the series and nothing that changes from night to
night. GitLab shows `classname` as the suite. Order of a case's children: skipped or failure,
then system-out.

A night is a suite. Its first case is the night itself, so that a night without findings is a
suite that passed; it fails when the night did not come to its end, and is skipped when nothing
could be judged. Each finding is a case: red has failed, yellow is skipped with its reason as
the message (seen, and nobody is woken), an improvement has passed and says so in its output.
"""

from __future__ import annotations

from collections import Counter
from xml.etree import ElementTree as ET

from bench.findings import Finding, Night
from bench.outlets import SECONDS, clipped, counts, failed, lines, ordered, plain, title, utc

FILE = "junit.xml"


def render(night: Night, earlier: list[Night]) -> str:
    """One suite with a case for the night and one for each finding."""
    del earlier
    suites = ET.Element("testsuites", name="resnet-bench")
    suite = ET.SubElement(suites, "testsuite", name=clipped(f"resnet-bench {night.plan}"))
    suite.set("timestamp", utc(night.started_at).strftime(SECONDS))  # the schema has no zone
    suite.set("hostname", "localhost")  # the machine's name is nobody's business
    suite.set("time", "0")
    classname = clipped(f"resnet-bench.{night.plan}")
    _judge(ET.SubElement(suite, "testcase", classname=classname, name="the night", time="0"), night)
    for finding, name in zip(ordered(night), _names(ordered(night)), strict=True):
        case = ET.SubElement(suite, "testcase", classname=classname, name=name, time="0")
        _result(case, finding)
    for counted, tag in (("failures", "failure"), ("skipped", "skipped"), ("errors", "error")):
        number = str(len(suite.findall(f"testcase/{tag}")))
        suite.set(counted, number)
        if counted != "skipped":  # the schema has no such attribute there
            suites.set(counted, number)
    for element in (suite, suites):
        element.set("tests", str(len(suite)))
    ET.indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(suites, encoding="unicode")}\n'


def _judge(case: ET.Element, night: Night) -> None:
    headline = clipped(night.headline)
    if failed(night):
        ET.SubElement(case, "failure", message=headline, type="night").text = headline
    elif not night.judged and night.colour != "red":
        ET.SubElement(case, "skipped", message=headline)
    said = [headline, counts(night), *map(plain, night.notes)]
    ET.SubElement(case, "system-out").text = "\n".join(said)


def _result(case: ET.Element, finding: Finding) -> None:
    said, told = clipped(finding.reason), "\n".join(lines(finding))
    if finding.colour == "red":
        ET.SubElement(case, "failure", message=said, type=finding.kind).text = told
    elif finding.colour == "yellow":
        ET.SubElement(case, "skipped", message=said)
    if finding.colour != "red":
        ET.SubElement(case, "system-out").text = told


def _names(findings: list[Finding]) -> list[str]:
    """A name for each. The same series of two machines, or twice, gets the machine and a number.

    Of two cases with one name GitLab shows one.
    """
    names = [title(f) for f in findings]
    twice = Counter(names)
    names = [
        f"{n} ({plain(f.machine_fingerprint or 'machine not known')})" if twice[n] > 1 else n
        for n, f in zip(names, findings, strict=True)
    ]
    used: set[str] = set()
    for place, name in enumerate(names):
        number = 1
        while names[place] in used:
            number += 1
            names[place] = f"{name} #{number}"
        used.add(names[place])
    return names
