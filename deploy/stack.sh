#!/bin/sh
# The whole stack in one container; arguments are of `gyre up`. Serving asks for a token, which is made
# at the first start.
set -eu
umask 077
tokens=$GYRE_SERVING_TOKENS_FILE
[ -s "$tokens" ] || python -c 'import secrets; print(secrets.token_urlsafe(24))' > "$tokens"
echo "token of serving: $(head -n 1 "$tokens")"
exec gyre up --stay "$@"
