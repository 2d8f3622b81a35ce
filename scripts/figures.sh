# Read by the scripts that measure: figures of results.json (ddpm test), means and their standard errors.

# figure FILE TYPE NAME: of TYPE (test, new_test) the number NAME, or the value of the accuracy NAME
figure() {
    awk -v type="\"$2\":" -v name="\"$3\":" '
        /^\t"/ { inside = index($0, type) == 2; found = 0 }
        inside && index($0, name) { found = 1; if ($0 ~ /[{] *$/) next; value = $0 }
        found && /"value":/ { value = $0 }
        value { gsub(/.*:|[ \t,]/, "", value); print value; exit }' "$1"
}

# Numbers on the standard input, one a line -> their mean, the standard error of that, and how many they are.
mean_and_error() {
    awk '{ n++; sum += $1; squares += $1 * $1 }
        END { if (!n) exit 1
              mean = sum / n; variance = n > 1 ? (squares - n * mean * mean) / (n - 1) : 0
              printf "%.4f %.4f %d\n", mean, sqrt((variance > 0 ? variance : 0) / n), n }'
}

# hash_of FILE: its SHA-256, as results.json has it
hash_of() { { sha256sum "$1" 2> /dev/null || shasum -a 256 "$1"; } | cut -d ' ' -f 1; }

# weights_of MODEL: that of its network's weights
weights_of() { hash_of "$1/unet/diffusion_pytorch_model.safetensors"; }

# scored FOLDER TYPE TEXT...: whether FOLDER holds results of TYPE that have all these texts in them: hashes of what drew,
# options of the command line
scored() {
    [ -f "$1/results.json" ] || return 1
    results=$(awk -v type="\"$2\":" '/^\t"/ { inside = index($0, type) == 2 } inside' "$1/results.json")
    shift 2
    for text; do
        case $text in '') return 1 ;; esac
        case $results in *"$text"*) ;; *) return 1 ;; esac
    done
}

# between NAME PAGE: the standard input becomes what stands between PAGE's markers <!-- NAME: begin --> and <!-- NAME: end -->.
between() {
    text=$(cat)
    grep -q "<!-- $1: end -->" "$2" || { echo "$0: $2 has no markers <!-- $1: begin --> and end" >&2; return 1; }
    TEXT=$text awk -v begin="<!-- $1: begin -->" -v end="<!-- $1: end -->" '
        index($0, end) { inside = 0 }
        !inside
        index($0, begin) { inside = 1; print ENVIRON["TEXT"] }' "$2" > "$2.tmp" && mv "$2.tmp" "$2"
}
