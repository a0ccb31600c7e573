# shellcheck shell=bash
# What the machine itself must provide, from its distribution.

# COMMAND-OR-FILE=PACKAGE; asking for files takes a millisecond, asking dpkg takes a second.
NEEDED=(
  containerd=containerd runc=runc /usr/lib/cni/bridge=containernetworking-plugins buildah=buildah mmdebstrap=mmdebstrap
  conntrack=conntrack nft=nftables ip=iproute2 mount=mount nsenter=util-linux openssl=openssl
  cc=gcc /usr/include/stdio.h=libc6-dev musl-gcc=musl-tools readelf=binutils cmake=cmake
  /etc/ssl/certs/ca-certificates.crt=ca-certificates
)

install_packages() {
  local entry probe missing=()
  for entry in "${NEEDED[@]}"; do
    probe=${entry%=*}
    [[ -e $probe ]] || command -v "$probe" >/dev/null || missing+=("${entry#*=}")
  done
  ((${#missing[@]} > 0)) || return 0
  command -v apt-get >/dev/null || die "these are missing and there is no apt-get to install them: ${missing[*]}"
  say "installing ${missing[*]} (usually 20 to 60 s)"
  local log
  log=$(mktemp)
  if ! {
    timeout 300 apt-get update -qq &&
      DEBIAN_FRONTEND=noninteractive timeout 900 apt-get install -qq -y --no-install-recommends "${missing[@]}"
  } >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    die "apt-get could not install them; run it by hand to see more: apt-get install ${missing[*]}"
  fi
  rm -f "$log"
}
