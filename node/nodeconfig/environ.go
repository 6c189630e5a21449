package nodeconfig

import (
	"regexp"
	"slices"
	"strings"
)

// linkVariable is what Kubernetes puts into every container for each service of its namespace, after the prefix: for a
// service named freshet FRESHET_SERVICE_HOST, FRESHET_PORT, FRESHET_PORT_8080_TCP_ADDR and their like.
const linkVariable = `^(\w*_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`

// readEnviron enters what the variables with the prefix say.
func (s *Settings) readEnviron(environ, others []string) {
	keys := map[string]*key{}
	for _, k := range s.keys {
		keys[s.variable(k.name)] = k
	}
	for flag, k := range s.short {
		keys[s.variable(flag)] = k
	}
	link := regexp.MustCompile(linkVariable)
	for _, entry := range slices.Sorted(slices.Values(environ)) {
		name, text, _ := strings.Cut(entry, "=")
		rest, ours := strings.CutPrefix(name, s.prefix)
		if !ours || text == "" {
			continue
		}
		where := origin{layer: byVariable, name: name}
		k := keys[name]
		if k == nil {
			if slices.Contains(others, name) || link.MatchString(rest) {
				continue
			}
			var err error
			if k, err = s.named(s.memberOf(rest)); err != nil {
				s.wrong("", where, "", "%v", err)
				continue
			}
		}
		if k == nil {
			s.wrong("", where, "", "no key has this variable; want %s and a key in capitals, such as %s", s.prefix, s.variable(s.keys[0].name))
			continue
		}
		s.say(k, said{text: text, where: where})
	}
}

// variable is that of a key, or of a flag.
func (s *Settings) variable(name string) string {
	if f, member, suffix := s.split(name); f != nil {
		return s.prefix + strings.ToUpper(f.section+"__"+strings.ReplaceAll(member, "/", "__")+"__"+strings.ReplaceAll(suffix, ".", "_"))
	}
	return s.prefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(name))
}

// split takes the name of a family's key apart.
func (s *Settings) split(name string) (f *family, member, suffix string) {
	for _, f := range s.families {
		if rest, inside := strings.CutPrefix(name, f.section+"."); inside {
			for _, suffix := range f.suffixes {
				if member, ok := strings.CutSuffix(rest, "."+suffix); ok {
					return f, member, suffix
				}
			}
		}
	}
	return nil, "", ""
}

// memberOf is the key of a variable without its prefix, CACHES__PRODUCT__PAGE__WARM_UP_LIMIT, or "".
func (s *Settings) memberOf(rest string) string {
	parts := strings.Split(rest, "__")
	if len(parts) < 3 {
		return ""
	}
	for _, f := range s.families {
		if parts[0] != strings.ToUpper(f.section) {
			continue
		}
		for _, suffix := range f.suffixes {
			if parts[len(parts)-1] == strings.ToUpper(strings.ReplaceAll(suffix, ".", "_")) {
				return f.section + "." + strings.ToLower(strings.Join(parts[1:len(parts)-1], "/")) + "." + suffix
			}
		}
	}
	return ""
}

// readFlags enters what flags say.
func (s *Settings) readFlags(flags map[string]string, set []string) {
	for _, k := range s.keys {
		if text, given := flags[k.flag]; given && k.flag != "" {
			s.say(k, said{text: text, where: origin{layer: byFlag, name: k.flag}})
		}
	}
	for _, text := range set {
		where := origin{layer: byFlag, name: "set"}
		name, value, ok := strings.Cut(text, "=")
		if !ok {
			s.wrong("", where, "", "want KEY=VALUE, such as redis.timeout=20ms")
			continue
		}
		where.name += " " + short(name)
		switch k, err := s.named(name); {
		case err != nil:
			s.wrong(name, where, "", "%v", err)
		case k == nil:
			s.wrong(name, where, "", "unknown key")
		default:
			s.say(k, said{text: value, where: where})
		}
	}
}
