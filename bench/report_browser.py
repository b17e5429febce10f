"""The report of a run or the page of a race in headless Chromium: wide and 390 px, light, dark and printed.

    python bench/report_browser.py report.html race.html … --axe axe.min.js --out pictures

Needs Chromium (apt-get install chromium) and axe-core (npm pack axe-core, then package/axe.min.js of the archive).
Writes a picture of each view, as it opens and with all details open, and a PDF, to be looked at, prints a line for
each view, and exits with 1 if one has a request, an error, a serious or critical finding of axe-core, labels of a
figure that overlap, or is wider than the screen. It talks to Chromium over pipes by the DevTools protocol, and needs no
other package.
"""
import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path

VIEWS = [(width, scheme) for width in (1280, 390) for scheme in ('light', 'dark')]
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--no-first-run', '--hide-scrollbars',
         '--remote-debugging-pipe']
OPEN = '[...document.querySelectorAll("details")].forEach(d => d.open = true)'
OVERLAPS = '''[...document.querySelectorAll("svg[role=img]")].flatMap(svg => {
    const boxes = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()])
    return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) => p.left < q.right && q.left < p.right &&
        p.top + 2 < q.bottom && q.top + 2 < p.bottom).map(([b]) => svg.querySelector("title").textContent + ": " + a +
        " and " + b)) })'''
ERRORS = 'Runtime.exceptionThrown', 'Log.entryAdded', 'Runtime.consoleAPICalled'


class Browser:
    "Chromium, and the protocol over its two pipes: messages are JSON, each ends with a zero byte."
    def __init__(self, chromium, profile):
        ours, theirs = os.pipe(), os.pipe()  # to the browser, and from it
        shell = ['sh', '-c', f'exec "$@" 3<&{ours[0]} 4>&{theirs[1]}', 'sh']
        command = [*shell, chromium, *FLAGS, f'--user-data-dir={profile}']
        self.process = subprocess.Popen(command, pass_fds=(ours[0], theirs[1]), stderr=subprocess.DEVNULL)
        os.close(ours[0])
        os.close(theirs[1])
        self.out, self.into = os.fdopen(ours[1], 'wb'), os.fdopen(theirs[0], 'rb')
        self.numbers, self.events, self.rest = count(1), [], b''

    def read(self):
        while b'\0' not in self.rest:
            piece = self.into.read1(1 << 16)
            if not piece: raise SystemExit('Chromium ended')
            self.rest += piece
        message, self.rest = self.rest.split(b'\0', 1)
        return json.loads(message)

    def call(self, method, session=None, **params):
        number = next(self.numbers)
        message = dict(id=number, method=method, params=params) | ({'sessionId': session} if session else {})
        self.out.write(json.dumps(message).encode() + b'\0')
        self.out.flush()
        while True:
            said = self.read()
            if said.get('id') == number:
                if 'error' in said: raise SystemExit(f"{method}: {said['error']}")
                return said['result']
            self.events.append(said)

    def wait_for(self, method):
        while not any(e.get('method') == method for e in self.events): self.events.append(self.read())


def opened(browser, url, width, scheme):
    "A page that shows the file at this width and in this scheme; its session."
    target = browser.call('Target.createTarget', url='about:blank')['targetId']
    session = browser.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
    for domain in ('Page', 'Network', 'Runtime', 'Log'): browser.call(f'{domain}.enable', session)
    screen = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    browser.call('Emulation.setDeviceMetricsOverride', session, **screen)
    browser.call('Emulation.setEmulatedMedia', session, features=[dict(name='prefers-color-scheme', value=scheme)])
    browser.events = []
    failed = browser.call('Page.navigate', session, url=url).get('errorText')
    if failed: raise SystemExit(f'{url}: {failed}')
    browser.wait_for('Page.loadEventFired')
    return session


def value_of(browser, session, expression):
    found = browser.call('Runtime.evaluate', session, expression=expression, awaitPromise=True, returnByValue=True)
    if 'exceptionDetails' in found: raise SystemExit(found['exceptionDetails'])
    return found['result'].get('value')


def problems_of(browser, session, url, width, axe):
    "What is wrong with the page that is open, in words."
    said = [e for e in browser.events if e.get('sessionId') == session]
    requests = [e['params']['request']['url'] for e in said if e['method'] == 'Network.requestWillBeSent']
    found = [f'request: {r[:90]}' for r in requests if r != url and not r.startswith('data:')]
    found += [f"{e['method']}: {e['params']}" for e in said if e['method'] in ERRORS]
    page_width = value_of(browser, session, 'document.documentElement.scrollWidth')
    if page_width > width: found.append(f'the page is {page_width} px wide')
    overlaps = value_of(browser, session, OVERLAPS)
    if overlaps: found.append(f'{len(overlaps)} labels overlap, such as {overlaps[0]}')
    browser.call('Runtime.evaluate', session, expression=axe)
    findings = value_of(browser, session, '''axe.run().then(r => r.violations.map(
        v => [v.impact, v.id, v.nodes.length, v.nodes[0].html.slice(0, 150), v.nodes[0].failureSummary]))''')
    for impact, name, *rest in findings:
        line = f'axe {impact}: {name}, {rest[0]} times, such as {rest[1]} {" ".join(rest[2].split())}'
        if impact in ('serious', 'critical'): found.append(line)
        else: print('   ', line)
    return found


def take_picture(browser, session, width, file):
    height = value_of(browser, session, 'document.documentElement.scrollHeight')
    clip = dict(x=0, y=0, width=width, height=min(height, 16000), scale=1)
    picture = browser.call('Page.captureScreenshot', session, captureBeyondViewport=True, clip=clip)['data']
    file.write_bytes(base64.b64decode(picture))


def look(browser, path, out, axe):
    "All views of a file; whether all are in order."
    url, good = path.resolve().as_uri(), True
    for width, scheme in VIEWS:
        session, name = opened(browser, url, width, scheme), f'{path.parent.name}-{path.stem}-{width}-{scheme}'
        take_picture(browser, session, width, out/f'{name}.png')
        value_of(browser, session, OPEN)
        take_picture(browser, session, width, out/f'{name}-open.png')
        found = problems_of(browser, session, url, width, axe)
        good &= not found
        print(f'{name}: {"; ".join(found) or "no request, no error, no serious finding"}')
        browser.call('Page.close', session)
    session = opened(browser, url, 794, 'light')
    paper = dict(width=794, height=1123, deviceScaleFactor=1, mobile=False)
    browser.call('Emulation.setDeviceMetricsOverride', session, **paper)
    browser.call('Emulation.setEmulatedMedia', session, media='print', features=[])
    folded = value_of(browser, session, '''[...document.querySelectorAll("details:not([open]) > :not(summary)")].filter(
        e => !e.checkVisibility()).length''')
    print(f'{path.parent.name}-{path.stem}, printed: {folded or "no"} parts are hidden')
    good &= not folded
    pdf = browser.call('Page.printToPDF', session, printBackground=False, preferCSSPageSize=True)['data']
    (out/f'{path.parent.name}-{path.stem}.pdf').write_bytes(base64.b64decode(pdf))
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pages', nargs='+', type=Path)
    parser.add_argument('--axe', type=Path, required=True)
    parser.add_argument('--out', type=Path, default=Path('report-views'))
    parser.add_argument('--chromium', default=shutil.which('chromium') or shutil.which('google-chrome'))
    args = parser.parse_args()
    if not args.chromium: raise SystemExit('no Chromium found: name it with --chromium')
    args.out.mkdir(parents=True, exist_ok=True)
    axe = args.axe.read_text('utf-8')
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(args.chromium, profile)
        print(browser.call('Browser.getVersion')['product'], 'axe-core', axe[:60].split('\n')[0].strip('/*! '))
        good = [look(browser, path, args.out, axe) for path in args.pages]
        browser.call('Browser.close')
        browser.process.wait(30)
    sys.exit(0 if all(good) else 1)


if __name__ == '__main__': main()
