#!/usr/bin/env bash
# After bring_up.sh: has a text generated through the Service, and says what else to try.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${CLUSTER:=}" "${PYTHON:=.venv/bin/python}"
[ -z "$CLUSTER" ] || eval "$($CLUSTER env)"
NAMESPACE=glinthawk-demo

key=$(kubectl --namespace "$NAMESPACE" get secret smollm2-api-key --output jsonpath='{.data.key}' | base64 -d)
port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
kubectl --namespace "$NAMESPACE" port-forward service/smollm2 "$port:8000" >/dev/null &
forward=$!
trap 'kill $forward' EXIT
for _ in $(seq 100); do curl -sf "http://127.0.0.1:$port/health" >/dev/null && break; sleep 0.2; done
"$PYTHON" - "http://127.0.0.1:$port/v1" "$key" <<'P'
import sys

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], timeout=300)
question = "Write one sentence about hawks."
answer = client.chat.completions.create(
    model="smollm2-135m", messages=[{"role": "user", "content": question}], max_tokens=48, temperature=0
)
print(f"\n> {question}\n{answer.choices[0].message.content}\n")
P
cat <<T
It runs in the namespace $NAMESPACE. To look around:
$([ -z "$CLUSTER" ] || echo "  eval \"\$($CLUSTER env)\"")
  kubectl --namespace $NAMESPACE get glinthawkdeployments,pods --output wide
  kubectl --namespace $NAMESPACE describe glinthawkdeployment smollm2
  kubectl --namespace $NAMESPACE port-forward service/smollm2 8000
  kubectl --namespace $NAMESPACE get secret smollm2-api-key --output jsonpath='{.data.key}' | base64 -d
  kubectl --namespace glinthawk-system logs deployment/glinthawk-operator --follow
  make cluster-down${CLUSTER:+ CLUSTER='$CLUSTER'}
T
