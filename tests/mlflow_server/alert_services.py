"""A program that sends alerts to Slack, PagerDuty and others, and answers as they do.

It runs in a network and with an /etc/hosts of its own: in Apprise the names of their hosts are
fixed. It prints how many alerts went out, and every request that came.

    python -m tests.mlflow_server.alert_services CERTIFICATE
"""

import json
import re
import sys
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from core.settings import load_settings
from mlflow_server.alerts import Alerts
from tests.support.tools.alert_receivers import (
    DRIFTS,
    ERROR,
    MARKUP,
    MODEL,
    NOW,
    ROUTING_KEY,
    SLACK_PATH,
    TEAMS_PATH,
    encrypt,
    serving,
)

SLACK = "hooks.slack.com"
PAGERDUTY = "events.pagerduty.com"
TELEGRAM = "api.telegram.org"
DISCORD = "discord.com"
FEISHU = "open.feishu.cn"
TEAMS = "127.0.0.1"
"""Its address is that of a workflow of the team's own."""
TAG = re.compile(r"</?(\w*)[^>]*>|&(?!(?:lt|gt|amp|quot);)")
TAGS = {"b", "strong", "i", "em", "u", "s", "a", "code", "pre"}
"""Tags of Telegram's HTML; it refuses a text with others."""
SEVERITIES = {"critical", "error", "warning", "info"}
LONGEST_SUMMARY = 1024


class Services(BaseHTTPRequestHandler):
    """The services, of which a request names one."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answers = {
            SLACK: self.of_slack,
            PAGERDUTY: self.of_pagerduty,
            TELEGRAM: self.of_telegram,
            TEAMS: self.of_teams,
            DISCORD: self.of_discord,
            FEISHU: self.of_feishu,
        }
        status, answer = answers[self.headers["Host"].partition(":")[0]](body)
        request = {"host": self.headers["Host"], "status": status, "body": body}
        self.server.received.append(request)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(answer.encode())

    def of_slack(self, body):
        """Answer as an incoming webhook."""
        if self.path != SLACK_PATH:
            return 404, "no_service"
        is_known = body.get("text") or body.get("attachments")
        return (200, "ok") if is_known else (400, "no_text")

    def of_pagerduty(self, body):
        """Answer as the Events API v2."""
        payload = body["payload"]
        is_valid = (
            self.path == "/v2/enqueue"
            and body["routing_key"] == ROUTING_KEY
            and body["event_action"] == "trigger"
            and payload["severity"] in SEVERITIES
            and payload["source"]
            and 0 < len(payload["summary"]) <= LONGEST_SUMMARY
        )
        if not is_valid:
            return 400, json.dumps({"status": "invalid event"})
        return 202, json.dumps({"status": "success", "dedup_key": "1"})

    def of_telegram(self, body):
        """Answer as `sendMessage` of a bot."""
        is_html = body.get("parse_mode") == "HTML"
        tags = {tag.lower() for tag in TAG.findall(body["text"])} if is_html else set()
        if tags - TAGS:
            text = f"can't parse entities: {tags - TAGS}"
            return 400, json.dumps({"ok": False, "description": text})
        return 200, json.dumps({"ok": True, "result": {"message_id": 1}})

    def of_teams(self, body):
        """Answer as a workflow that takes an adaptive card."""
        (attachment,) = body["attachments"]
        is_card = attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
        is_known = self.path.startswith(f"{TEAMS_PATH}/triggers/manual/paths/invoke?")
        return (202, "") if is_card and is_known else (400, "")

    def of_discord(self, body):
        """Answer as a webhook."""
        return (204, "") if body.get("content") else (400, "{}")

    def of_feishu(self, body):
        """Answer as a bot of a group."""
        is_text = body["msg_type"] == "text" and body["content"]["text"]
        return 200, json.dumps({"code": 0 if is_text else 9499, "msg": ""})

    def log_message(self, *_):
        pass


def send_alerts(certificate):
    """Send alerts of each severity and one of a failed task."""
    server = ThreadingHTTPServer(("127.0.0.1", 443), Services)
    encrypt(server, certificate)
    with serving(server) as received, closing(Alerts(load_settings())) as alerts:
        for drift in DRIFTS:
            alerts.note(MODEL, f"drift: {drift.severity}", drift, NOW)
        delivered = alerts.deliver(MODEL, NOW)
        alerts.alert_failure(MODEL, "train.fit", ERROR, NOW)
        alerts.alert(MODEL, "markup", MARKUP, NOW)
        waiting = len(alerts.undelivered(MODEL, NOW))
    return {"delivered": delivered, "waiting": waiting, "requests": received}


if __name__ == "__main__":
    print(json.dumps(send_alerts(sys.argv[1])))  # noqa: T201
