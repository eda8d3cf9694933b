#!/bin/sh
# Makes the Compose stack's secrets, once: passwords of Redis, Qdrant and Grafana, an API key of the tenant "demo" and an
# admin key, which are printed and stand nowhere else. Files that exist are kept. Usage: secrets.sh [DIRECTORY]
set -eu
umask 077
directory=${1:-$(dirname "$0")/secrets}
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

mkdir -p "$directory"
if [ ! -e "$directory/grafana.env" ]; then
    printf 'GF_SECURITY_ADMIN_PASSWORD=%s\n' "$(random)" >"$directory/grafana.env"
fi
if [ -e "$directory/keys.json" ]; then
    echo "$directory has secrets already; remove it to make new ones" >&2
    exit 0
fi

redis=$(random)
qdrant=$(random)
key="lm-$(random)"
admin="lm-$(random)"
hash_of() { printf '%s' "$1" | sha256sum | cut -d ' ' -f 1; }
printf 'user default on >%s ~* &* +@all\n' "$redis" >"$directory/redis.acl"
printf 'REDISCLI_AUTH=%s\n' "$redis" >"$directory/redis.env"
printf 'QDRANT__SERVICE__API_KEY=%s\n' "$qdrant" >"$directory/qdrant.env"
printf 'LLMMESH_CACHE_REDIS_URL=redis://:%s@redis:6379/0\nLLMMESH_CACHE_QDRANT_API_KEY=%s\n' "$redis" "$qdrant" >"$directory/cache.env"
printf 'LLMMESH_EDGE_REDIS_URL=redis://:%s@redis:6379/0\n' "$redis" >"$directory/edge.env"
printf 'LLMMESH_PROVIDER_REDIS_URL=redis://:%s@redis:6379/0\n# Keys of vendors, by the names that vendors.yaml gives them.\n# OPENAI_API_KEY=\n' "$redis" >"$directory/provider.env"
printf '{"%s": {"tenant": "demo"}, "%s": {"tenant": "admin", "scopes": ["admin"]}}\n' \
    "$(hash_of "$key")" "$(hash_of "$admin")" >"$directory/keys.json"
# Mounted into containers that run as other users; the folder keeps everyone else on the host out.
chmod 0444 "$directory/redis.acl" "$directory/keys.json"
echo "key of tenant demo: $key"
echo "admin key: $admin"
