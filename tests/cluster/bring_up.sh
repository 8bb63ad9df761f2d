#!/usr/bin/env bash
# From nothing to a running GlinthawkDeployment: images, hub, chart, sample. Run by make.
#
#   CLUSTER  a command with `up --nodes …`, `env`, `build`, `push` and `down`, for a cluster of its
#            own; without it KUBECONFIG says which cluster, and BUILD and PUSH how images get there
#   NEXT     not empty: the images also get the tag of a next release, for the tests of upgrades
#   READY_S  seconds that the sample may take from `kubectl apply` until it is Ready
set -euo pipefail
cd "$(dirname "$0")/../.."

: "${CLUSTER:=}" "${BASE:=python:3.11-slim-bookworm}" "${PREFIX:=localhost/}" "${PYTHON:=.venv/bin/python}"
# Of the files as they are, new ones included, for nodes keep an image that they have under a tag.
INDEX=$(mktemp -u)
TREE=$(export GIT_INDEX_FILE="$INDEX"; git add --all && git write-tree)
rm -f "$INDEX"
: "${TAG:=demo-${TREE:0:12}}" "${NEXT:=}" "${READY_S:=300}"
NODES=${NODES:-gpu-1,gpu-2,cpu-1,cpu-2,cpu-3}
NAMESPACE=glinthawk-demo
SYSTEM=glinthawk-system

say() { echo "== $*"; }
quietly() { "$@" >>.demo/images.log 2>&1 || { tail -20 .demo/images.log; exit 1; }; }

if [ -n "$CLUSTER" ]; then
  BUILD=${BUILD:-$CLUSTER build} PUSH=${PUSH:-$CLUSTER push}
  eval "$($CLUSTER env)"
  kubectl get nodes >/dev/null 2>&1 || { say "a cluster with the nodes $NODES"; $CLUSTER up --nodes "$NODES"; }
fi
BUILD=${BUILD:-buildah bud} PUSH=${PUSH:-buildah push}

say "images, tagged $TAG"
IMAGES="operator gateway stage attention"
: >.demo/images.log
quietly make --no-print-directory images BASE="$BASE" STAGE_BASE="${STAGE_BASE:-$BASE}" TAG="$TAG" PREFIX="$PREFIX" \
  BUILD="$BUILD"
for image in $IMAGES; do $PUSH "${PREFIX}glinthawk-$image:$TAG"; done
for image in ${NEXT:+$IMAGES}; do
  name=${PREFIX}glinthawk-$image:$TAG
  printf 'FROM %s\nLABEL org.opencontainers.image.version=next\n' "$name" |
    quietly $BUILD --tag "$name-next" --file - tests/cluster
  $PUSH "$name-next"
done
mkdir -p .demo/hub
"$PYTHON" tests/cluster/export_model.py .demo/hub
quietly $BUILD --build-arg BASE="$BASE" --tag "${PREFIX}glinthawk-hub:$TAG" --file tests/cluster/hub.Dockerfile .demo/hub
$PUSH "${PREFIX}glinthawk-hub:$TAG"

say "the hub, the operator, the sample"
sed "s#IMAGE#${PREFIX}glinthawk-hub:$TAG#" tests/cluster/hub.yaml | kubectl apply -f -
kubectl apply --server-side --force-conflicts --filename crds/
helm upgrade --install glinthawk charts/glinthawk --namespace "$SYSTEM" --create-namespace \
  --set image.registry="${PREFIX%/}" --set image.tag="$TAG" --set operator.config.lostNodeSeconds=20 \
  --wait --timeout 180s >/dev/null
kubectl --namespace "$NAMESPACE" rollout status deployment/hub --timeout=120s
BEGAN=$SECONDS
kubectl --namespace "$NAMESPACE" apply -f examples/cluster/smollm2.yaml
# One that runs already is brought to these images first.
of_others() {
  kubectl --namespace "$NAMESPACE" get pods --selector app.kubernetes.io/name=glinthawk \
    --output jsonpath='{range .items[*]}{.spec.containers[0].image}{"\n"}{end}' | grep -v ":$TAG\$"
}
for _ in $(seq 150); do of_others >/dev/null || break; sleep 2; done
kubectl --namespace "$NAMESPACE" wait --for=condition=Ready glinthawkdeployment/smollm2 --timeout="${READY_S}s"
say "Ready $((SECONDS - BEGAN)) s after it was applied"
kubectl --namespace "$NAMESPACE" get glinthawkdeployments
